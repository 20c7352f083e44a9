"""Pulmonology for HLO: the lungs and breathing."""

from hlo import Adapter, Sampling, Specialty, hookimpl, read_examples


@hookimpl
def hlo_specialties() -> list[Specialty]:
    """Offer the pulmonology specialty."""
    return [
        Specialty(
            name="pulmonology",
            title="Pulmonology",
            description="Lungs, airways, breathing and breathing during sleep.",
            adapter=Adapter("pulmonology"),
            template="Answer this pulmonology question for a patient, plainly and carefully.\n\n{{ question }}",
            examples=read_examples(__name__, "examples.toml"),
            sampling=Sampling(max_tokens=160, repetition_penalty=1.1),
        )
    ]
