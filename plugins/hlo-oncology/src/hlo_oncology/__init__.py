"""Oncology for HLO: cancers, tumors and their treatment."""

from hlo import Adapter, Sampling, Specialty, hookimpl, read_examples


@hookimpl
def hlo_specialties() -> list[Specialty]:
    """Offer the oncology specialty."""
    return [
        Specialty(
            name="oncology",
            title="Oncology",
            description="Cancers and tumors of every organ, leukemia and lymphoma, cancer treatment and life after it.",
            adapter=Adapter("oncology"),
            template="Answer this oncology question for a patient, plainly and carefully.\n\n{{ question }}",
            examples=read_examples(__name__, "examples.toml"),
            sampling=Sampling(max_tokens=160, repetition_penalty=1.1),
        )
    ]
