"""Genetics for HLO: inherited conditions, birth differences and gene tests."""

from hlo import Adapter, Sampling, Specialty, hookimpl, read_examples


@hookimpl
def hlo_specialties() -> list[Specialty]:
    """Offer the genetics specialty."""
    return [
        Specialty(
            name="genetics",
            title="Genetics",
            description="Inherited conditions, birth differences, chromosomes, gene tests and family risk.",
            adapter=Adapter("genetics"),
            template="Answer this genetics question for a patient, plainly and carefully.\n\n{{ question }}",
            examples=read_examples(__name__, "examples.toml"),
            sampling=Sampling(max_tokens=160, repetition_penalty=1.1),
        )
    ]
