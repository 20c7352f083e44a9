"""Cardiology for HLO: the heart, blood vessels and blood pressure."""

from hlo import Adapter, Sampling, Specialty, hookimpl, read_examples


@hookimpl
def hlo_specialties() -> list[Specialty]:
    """Offer the cardiology specialty."""
    return [
        Specialty(
            name="cardiology",
            title="Cardiology",
            description="Heart, blood vessels, blood pressure and circulation.",
            adapter=Adapter("cardiology"),
            template="Answer this cardiology question for a patient, plainly and carefully.\n\n{{ question }}",
            examples=read_examples(__name__, "examples.toml"),
            sampling=Sampling(max_tokens=160, repetition_penalty=1.1),
        )
    ]
