"""The catalog: what is offered is checked, and what is refused stops nothing else."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from hlo import catalog
from hlo.errors import AdapterError, PluginError, UnknownSpecialty
from hlo.records import Adapter, AdapterVersion, Embeddings, Offer, Refusal, Sampling, Specialty

Version = Callable[[str], AdapterVersion]


def specialty(name: Any = "cardiology", **fields: Any) -> Specialty:
    return Specialty(**({"name": name, "title": "Title", "adapter": Adapter("x")} | fields))


def offer(plugin: str, *specialties: Specialty) -> Offer:
    return Offer(plugin, f"dist-{plugin}", "1.0", specialties)


def endless() -> list[Any]:
    """A list that contains itself."""
    own: list[Any] = []
    own.append(own)
    return own


NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    "name is a number": ({"name": 7}, "$.name"),
    "name is empty": ({"name": ""}, "can not be a specialty's name"),
    "name is upper-case": ({"name": "Cardiology"}, "`Cardiology`"),
    "name has a space": ({"name": "heart disease"}, "`heart disease`"),
    "name ends in a line break": ({"name": "heart\n"}, "can not be"),
    "name leads out": ({"name": "../heart"}, "can not be"),
    "name is too long": ({"name": "a" * 65}, "can not be"),
    "name begins with a digit": ({"name": "1a"}, "can not be"),
    "title is empty": ({"title": "  "}, "`cardiology` has no title"),
    "title is no text": ({"title": None}, "$.title"),
    "title can not be encoded": ({"title": "\ud800"}, "malformed"),
    "adapter is a string": ({"adapter": "x"}, "$.adapter"),
    "adapter reference is a number": ({"adapter": Adapter(3)}, "$.adapter.reference"),  # type: ignore[arg-type]
    "template is none": ({"template": None}, "$.template"),
    "examples are a list": ({"examples": ["a"]}, "$.examples"),
    "examples are one string": ({"examples": {"patients": "abc"}}, "$.examples"),
    "examples hold numbers": ({"examples": {"patients": (1,)}}, "$.examples"),
    "examples hold themselves": ({"examples": {"patients": endless()}}, "malformed"),
    "embeddings hold text": ({"embeddings": Embeddings("f", {"p": [["x"]]})}, "$.embeddings"),  # type: ignore[list-item]
    "embeddings are one vector": ({"embeddings": Embeddings("f", {"p": [1.0]})}, "$.embeddings"),  # type: ignore[list-item]
    "embeddings hold objects": ({"embeddings": Embeddings("f", {"p": object()})}, "`object` is no"),  # type: ignore[dict-item]
    "sampling is none": ({"sampling": None}, "$.sampling"),
    "max_tokens is zero": ({"sampling": Sampling(max_tokens=0)}, "sampling.max_tokens must be at least 1, not 0"),
    "max_tokens is fractional": ({"sampling": Sampling(max_tokens=1.5)}, "$.sampling.max_tokens"),  # type: ignore[arg-type]
    "temperature is negative": ({"sampling": Sampling(temperature=-0.1)}, "sampling.temperature"),
    "temperature is not a number": ({"sampling": Sampling(temperature=float("nan"))}, "$.sampling.temperature"),
    "temperature is infinite": ({"sampling": Sampling(temperature=float("inf"))}, "$.sampling.temperature"),
    "top_p is zero": ({"sampling": Sampling(top_p=0.0)}, "sampling.top_p"),
    "top_p is above one": ({"sampling": Sampling(top_p=1.01)}, "sampling.top_p"),
    "repetition_penalty is zero": ({"sampling": Sampling(repetition_penalty=0.0)}, "sampling.repetition_penalty"),
    "stop holds an empty string": ({"sampling": Sampling(stop=("",))}, "sampling.stop"),
    "seed is beyond 64 bits": ({"sampling": Sampling(seed=2**70)}, "sampling.seed"),
}


@pytest.mark.parametrize(("fields", "said"), NONSENSE.values(), ids=list(NONSENSE))
def test_nonsense_is_refused(fields: dict[str, Any], said: str) -> None:
    """A declaration with a wrong type, a bad name or sampling out of range is refused, saying where and what to do."""
    with pytest.raises(PluginError) as caught:
        catalog.check_declaration(specialty(**fields))
    assert said in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["base", "null", "auto"])
def test_reserved_names_are_refused(name: str) -> None:
    """No specialty can take a name that HLO uses for something else."""
    with pytest.raises(PluginError, match=f"`{name}` can not be"):
        catalog.check_declaration(specialty(name))


@pytest.mark.parametrize("name", ["a", "a1_b", "a" * 64])
def test_ordinary_names_are_accepted(name: str) -> None:
    """A name is a lower-case letter and up to 63 letters, digits and underscores."""
    catalog.check_declaration(specialty(name))


def test_read_only_mappings_and_arrays_are_accepted() -> None:
    """Read-only mappings, lists for tuples, and numpy arrays are as good as dicts and lists of floats."""
    catalog.check_declaration(
        specialty(
            examples=MappingProxyType({"patients": ["a?"], "clinical": ("b?",)}),
            embeddings=Embeddings("f", MappingProxyType({"p": np.ones((2, 3), dtype=np.float32)})),  # type: ignore[dict-item]
        )
    )


def test_limits_are_accepted() -> None:
    """Sampling at the edges of what is allowed is allowed."""
    for sampling in (
        Sampling(max_tokens=1, temperature=0.0, top_p=1.0, repetition_penalty=2.0, seed=0, stop=("x",)),
        Sampling(temperature=2.0, top_p=1e-6, repetition_penalty=1e-6),
    ):
        catalog.check_declaration(specialty(sampling=sampling))


def test_build_keeps_what_holds(version: Version) -> None:
    """What can be served is an entry with its package; what can not is a refusal; earlier refusals stay."""
    earlier = Refusal("p0", None, "It broke.", "Mend it.")

    def check(one: Specialty) -> AdapterVersion:
        if one.name == "oncology":
            raise AdapterError("It is damaged.", remedy="Fetch it again.")
        return version(one.name)

    built = catalog.build(
        [offer("p1", specialty("cardiology"), specialty("oncology")), offer("p2", specialty("Bad"), specialty("eye"))],
        [earlier],
        check,
    )
    assert list(built.entries) == ["cardiology", "eye"]
    entry = built.entries["cardiology"]
    assert (entry.adapter, entry.plugin, entry.distribution, entry.version) == (
        version("cardiology"),
        "p1",
        "dist-p1",
        "1.0",
    )
    assert built.refusals[0] == earlier
    assert built.refusals[1] == Refusal("p1", "oncology", "It is damaged.", "Fetch it again.", "AdapterError")
    assert (built.refusals[2].plugin, built.refusals[2].specialty) == ("p2", "Bad")


def test_the_first_of_two_of_one_name_is_kept(version: Version) -> None:
    """A second specialty of one name is refused with the name of the plugin that holds it, also within one plugin."""
    offers = [offer("p1", specialty("a"), specialty("a")), offer("p2", specialty("a"))]
    built = catalog.build(offers, [], lambda one: version(one.name))
    assert built.entries["a"].plugin == "p1"
    assert [(refusal.plugin, refusal.reason) for refusal in built.refusals] == [
        ("p1", "The name `a` is taken by the plugin `p1`."),
        ("p2", "The name `a` is taken by the plugin `p1`."),
    ]


def test_a_name_is_free_again_when_its_first_holder_was_refused(version: Version) -> None:
    """A refused specialty takes no name from another plugin's that can be served."""
    offers = [offer("p1", specialty("a", title="")), offer("p2", specialty("a"))]
    assert catalog.build(offers, [], lambda one: version(one.name)).entries["a"].plugin == "p2"


def test_a_malformed_name_is_refused_without_a_name(version: Version) -> None:
    """A refusal of a specialty whose name is no text names the plugin alone."""
    built = catalog.build([offer("p1", specialty(["x"]))], [], lambda one: version(one.name))
    assert [(refusal.plugin, refusal.specialty) for refusal in built.refusals] == [("p1", None)]


@pytest.mark.parametrize("fields", [{"title": "\ud800"}, {"examples": {"patients": endless()}}])
def test_strange_values_stop_no_other(fields: dict[str, Any], version: Version) -> None:
    """A declaration that can not even be read through is refused, and the others are served."""
    offers = [offer("p1", specialty("a", **fields)), offer("p2", specialty("b"))]
    built = catalog.build(offers, [], lambda one: version(one.name))
    assert list(built.entries) == ["b"]
    assert [refusal.specialty for refusal in built.refusals] == ["a"]


def test_keep_turns_later_errors_into_refusals(version: Version) -> None:
    """A specialty for which an error is found later leaves the entries and becomes a refusal."""
    offers = [offer("p1", specialty("a")), offer("p2", specialty("b"))]
    built = catalog.build(offers, [], lambda one: version(one.name))
    kept = catalog.keep(built, {"a": AdapterError("It changes nothing.", remedy="Train it.")})
    assert list(kept.entries) == ["b"]
    assert kept.refusals == (Refusal("p1", "a", "It changes nothing.", "Train it.", "AdapterError"),)
    assert list(built.entries) == ["a", "b"]


def test_find(version: Version) -> None:
    """A specialty is found by its name; another name raises with the field and what is installed."""
    built = catalog.build([offer("p1", specialty("a"), specialty("b"))], [], lambda one: version(one.name))
    assert built.find("a", field="$.specialty").specialty.name == "a"
    with pytest.raises(UnknownSpecialty, match="`cardiolgy`") as caught:
        built.find("cardiolgy", field="$.specialty")
    assert (caught.value.field, caught.value.remedy) == ("$.specialty", "Installed: a, b.")


def test_find_repeats_no_patients_words() -> None:
    """What does not look like a name is not repeated: it may be the question, put into the wrong field."""
    with pytest.raises(UnknownSpecialty) as caught:
        catalog.Catalog({}, ()).find("My chest hurts", field="$.specialty")
    assert "chest" not in str(caught.value)
    assert caught.value.remedy == "Installed: none."
