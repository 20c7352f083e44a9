"""Geriatrics for HLO: ageing, the senses, bones and joints of later life, and care."""

from hlo import Adapter, Sampling, Specialty, hookimpl, read_examples


@hookimpl
def hlo_specialties() -> list[Specialty]:
    """Offer the geriatrics specialty."""
    return [
        Specialty(
            name="geriatrics",
            title="Geriatrics",
            description="Ageing: falls, eyes, ears, mouth, bones, joints, medicines and care in later life.",
            adapter=Adapter("geriatrics"),
            template="Answer this geriatrics question for a patient, plainly and carefully.\n\n{{ question }}",
            examples=read_examples(__name__, "examples.toml"),
            sampling=Sampling(max_tokens=160, repetition_penalty=1.1),
        )
    ]
