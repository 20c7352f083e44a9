"""Nephrology for HLO: the kidneys and the urinary tract."""

from hlo import Adapter, Sampling, Specialty, hookimpl, read_examples


@hookimpl
def hlo_specialties() -> list[Specialty]:
    """Offer the nephrology specialty."""
    return [
        Specialty(
            name="nephrology",
            title="Nephrology",
            description="Kidneys, bladder, urinary tract, prostate and the male organs.",
            adapter=Adapter("nephrology"),
            template="Answer this nephrology question for a patient, plainly and carefully.\n\n{{ question }}",
            examples=read_examples(__name__, "examples.toml"),
            sampling=Sampling(max_tokens=160, repetition_penalty=1.1),
        )
    ]
