"""Neurology for HLO: the brain, spinal cord, nerves and muscles."""

from hlo import Adapter, Sampling, Specialty, hookimpl, read_examples


@hookimpl
def hlo_specialties() -> list[Specialty]:
    """Offer the neurology specialty."""
    return [
        Specialty(
            name="neurology",
            title="Neurology",
            description="Brain, spinal cord, nerves, muscles, sleep, development and dementia.",
            adapter=Adapter("neurology"),
            template="Answer this neurology question for a patient, plainly and carefully.\n\n{{ question }}",
            examples=read_examples(__name__, "examples.toml"),
            sampling=Sampling(max_tokens=160, repetition_penalty=1.1),
        )
    ]
