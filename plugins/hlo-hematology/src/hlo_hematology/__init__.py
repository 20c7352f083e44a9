"""Hematology for HLO: the blood, bleeding and clotting."""

from hlo import Adapter, Sampling, Specialty, hookimpl, read_examples


@hookimpl
def hlo_specialties() -> list[Specialty]:
    """Offer the hematology specialty."""
    return [
        Specialty(
            name="hematology",
            title="Hematology",
            description="Blood counts, anemia, bleeding, platelets, clotting disorders and transfusion.",
            adapter=Adapter("hematology"),
            template="Answer this hematology question for a patient, plainly and carefully.\n\n{{ question }}",
            examples=read_examples(__name__, "examples.toml"),
            sampling=Sampling(max_tokens=160, repetition_penalty=1.1),
        )
    ]
