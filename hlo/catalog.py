"""The catalog: what plugins offered, checked; and what was refused, and why.

A refusal names the plugin, the specialty, the reason and the remedy, and never stops the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from hlo.errors import HLOError, PluginError, UnknownAdapter, UnknownSpecialty
from hlo.records import Adapter, AdapterVersion, Embeddings, Offer, Refusal, Sampling, Specialty

BASE = "base"  # how requests and metrics call the base model without an adapter

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_RESERVED = frozenset({BASE, "null", "auto", "all", "none"})  # the last two: labels of metrics


class Entry(Struct, frozen=True):
    """A specialty that is served, its adapter, and the package that it came from."""

    specialty: Specialty
    adapter: AdapterVersion
    plugin: str
    distribution: str
    version: str
    origin: str = ""


class Catalog(Struct, frozen=True):
    """Every specialty that is served, by name, every one that was refused, and the plugins that are left out."""

    entries: Mapping[str, Entry]
    refusals: tuple[Refusal, ...]
    off: tuple[str, ...] = ()

    def find(self, name: str, *, field: str) -> Entry:
        """The specialty of that name. Raises `UnknownSpecialty`; `field` is where the name stood in the request."""
        try:
            return self.entries[name]
        except KeyError:
            raise UnknownSpecialty(
                # Only what looks like a name is repeated: a client may have put the question here.
                f"No specialty `{name}` is installed." if _NAME.fullmatch(name) else "No such specialty is installed.",
                field=field,
                remedy=f"Installed: {', '.join(self.entries) or 'none'}.",
            ) from None

    def adapter(self, name: str, *, field: str) -> AdapterVersion | None:
        """The adapter of that specialty, None for `base`. Raises `UnknownAdapter`; `field` as in `find`."""
        if name == BASE:
            return None
        if name not in self.entries:
            raise UnknownAdapter(
                "No adapter of that name is loaded.", field=field, remedy=f"Loaded: {', '.join([BASE, *self.entries])}."
            )
        return self.entries[name].adapter


def build(
    offers: Iterable[Offer],
    refusals: Iterable[Refusal],
    check: Callable[[Specialty], AdapterVersion],
    off: Iterable[str] = (),
) -> Catalog:
    """Check every specialty that was offered; `check` raises `HLOError` for what can not be served."""
    entries: dict[str, Entry] = {}
    refused = list(refusals)
    for offer in offers:
        for specialty in offer.specialties:
            try:
                check_declaration(specialty)
                if (holder := entries.get(specialty.name)) is not None:
                    raise PluginError(
                        f"The name `{specialty.name}` is taken by the plugin `{holder.plugin}`.",
                        remedy="Uninstall one of the two, or rename the specialty.",
                    )
                adapter = check(specialty)
            except HLOError as error:
                name = specialty.name if isinstance(specialty.name, str) else None
                refused.append(refusal(offer.plugin, name, error))
            else:
                entries[specialty.name] = Entry(
                    specialty, adapter, offer.plugin, offer.distribution, offer.version, offer.origin
                )
    return Catalog(entries, tuple(refused), tuple(off))


def refusal(plugin: str, specialty: str | None, error: HLOError) -> Refusal:
    """A refusal of what an error was found with."""
    return Refusal(plugin, specialty, error.message, error.remedy, type(error).__name__)


def keep(catalog: Catalog, errors: Mapping[str, HLOError]) -> Catalog:
    """The catalog without the specialties for which an error was found later, each now a refusal."""
    found = [refusal(catalog.entries[name].plugin, name, error) for name, error in errors.items()]
    kept = {name: entry for name, entry in catalog.entries.items() if name not in errors}
    return Catalog(kept, catalog.refusals + tuple(found), catalog.off)


def check_declaration(specialty: Specialty) -> None:
    """Raise `PluginError` when a specialty declares nonsense: wrong types, a bad name, sampling out of range."""
    try:
        msgspec.json.decode(msgspec.json.encode(specialty, enc_hook=_plain), type=Specialty)
    except Exception as error:  # a stranger's values can make encoding raise anything
        raise PluginError(
            f"The specialty is malformed: {error}.", remedy="See `hlo.Specialty` for its fields."
        ) from error
    for field, kind in (("adapter", Adapter), ("sampling", Sampling), ("embeddings", Embeddings | None)):
        if not isinstance(getattr(specialty, field), kind):  # a dict passes for one in JSON
            raise PluginError(
                f"The specialty is malformed: `{field}` is a `{type(getattr(specialty, field)).__name__}`.",
                remedy="See `hlo.Specialty` for its fields.",
            )
    if not _NAME.fullmatch(specialty.name) or specialty.name in _RESERVED:
        raise PluginError(
            f"`{specialty.name[:64]}` can not be a specialty's name.",
            remedy=f"Use lower-case letters, digits and `_`; {', '.join(sorted(_RESERVED))} are reserved.",
        )
    if not specialty.title.strip():
        raise PluginError(f"`{specialty.name}` has no title.", remedy="Give it a title for people to read.")
    _check_sampling(specialty.name, specialty.sampling)


def _check_sampling(name: str, sampling: Sampling) -> None:
    rules = (
        ("max_tokens", sampling.max_tokens >= 1, "at least 1"),
        ("temperature", 0 <= sampling.temperature <= 2, "from 0 to 2"),
        ("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1"),
        ("seed", sampling.seed is None or 0 <= sampling.seed < 1 << 63, "from 0 to 2**63 - 1"),
        ("stop", all(sampling.stop), "without empty strings"),
        ("repetition_penalty", 0 < sampling.repetition_penalty <= 2, "above 0 and at most 2"),
    )
    for field, holds, wanted in rules:
        if not holds:
            raise PluginError(
                f"`{name}`: sampling.{field} must be {wanted}, not {getattr(sampling, field)}.",
                remedy="Mend the specialty's `sampling`.",
            )


def _plain(value: object) -> Any:
    """What a plugin may use in place of a dict or a list: read-only mappings and arrays."""
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"`{type(value).__name__}` is no plain data")
