"""Infectious disease for HLO: infections, parasites, vaccines and travel."""

from hlo import Adapter, Sampling, Specialty, hookimpl, read_examples


@hookimpl
def hlo_specialties() -> list[Specialty]:
    """Offer the infectious disease specialty."""
    return [
        Specialty(
            name="infectious_disease",
            title="Infectious disease",
            description="Infections, parasites, bites, outbreaks, travel and vaccines.",
            adapter=Adapter("infectious_disease"),
            template="Answer this infectious disease question for a patient, plainly and carefully.\n\n{{ question }}",
            examples=read_examples(__name__, "examples.toml"),
            sampling=Sampling(max_tokens=160, repetition_penalty=1.1),
        )
    ]
