"""Gastroenterology for HLO: the digestive tract, liver and pancreas."""

from hlo import Adapter, Sampling, Specialty, hookimpl, read_examples


@hookimpl
def hlo_specialties() -> list[Specialty]:
    """Offer the gastroenterology specialty."""
    return [
        Specialty(
            name="gastroenterology",
            title="Gastroenterology",
            description="Esophagus, stomach, bowel, liver, gallbladder and pancreas.",
            adapter=Adapter("gastroenterology"),
            template="Answer this gastroenterology question for a patient, plainly and carefully.\n\n{{ question }}",
            examples=read_examples(__name__, "examples.toml"),
            sampling=Sampling(max_tokens=160, repetition_penalty=1.1),
        )
    ]
