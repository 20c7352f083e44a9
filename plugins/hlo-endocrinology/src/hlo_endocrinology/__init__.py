"""Endocrinology for HLO: diabetes, the thyroid and hormones."""

from hlo import Adapter, Sampling, Specialty, hookimpl, read_examples


@hookimpl
def hlo_specialties() -> list[Specialty]:
    """Offer the endocrinology specialty."""
    return [
        Specialty(
            name="endocrinology",
            title="Endocrinology",
            description="Diabetes, thyroid, adrenal, pituitary and sex hormones, growth and metabolism.",
            adapter=Adapter("endocrinology"),
            template="Answer this endocrinology question for a patient, plainly and carefully.\n\n{{ question }}",
            examples=read_examples(__name__, "examples.toml"),
            sampling=Sampling(max_tokens=160, repetition_penalty=1.1),
        )
    ]
