"""What the checks share: the words of a finding, and a bench with everything that is looked at on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import EntryPoint
from typing import Literal, TypeVar

from msgspec import Struct

from hlo import assemble, catalog, plugins
from hlo.contracts import Encoder
from hlo.errors import HLOError
from hlo.generation.adapters import Located
from hlo.generation.base_model import BaseModel
from hlo.generation.prompting import Tokenizer
from hlo.plugins import Discovery
from hlo.records import AdapterVersion, Specialty
from hlo.settings import Settings
from hlo.testing.catchment import Asked, Audit
from hlo.testing.remembering import Remembering
from hlo.testing.subject import Subject

T = TypeVar("T")

Told = tuple[Literal["ok", "warning", "trouble"], str, str]
"""A finding without its topic: state, text, remedy."""


def ok(text: str) -> Told:
    """What is as it should be."""
    return "ok", text, ""


def warning(text: str, remedy: str) -> Told:
    """What works, and could be better."""
    return "warning", text, remedy


def trouble(text: str, remedy: str) -> Told:
    """What will not work."""
    return "trouble", text, remedy


def problem(check: Callable[[T], object], of: T) -> HLOError | None:
    """What one of HLO's own checks raises, if anything."""
    try:
        check(of)
    except HLOError as error:
        return error
    return None


class Bench(Struct, dict=True):
    """What was asked for, and what the checks share, each part made when a check first needs it.

    `neighbours` are the entry points of all other plugins that HLO would load, and `given_encoder` takes the place of
    the encoder that the settings name. The last check leaves its `audit` here.
    """

    subject: Subject
    settings: Settings
    neighbours: tuple[EntryPoint, ...]
    questions: Sequence[Asked]
    max_moved: float
    engine: bool
    given_encoder: Encoder | None
    audit: Audit | None = None
    failed: dict[str, HLOError] = {}  # msgspec gives each bench its own

    @cached_property
    def rivals(self) -> tuple[EntryPoint, ...]:
        """Entry points of other packages that bear the name of one of the subject's."""
        return tuple(point for point in self.neighbours if point.name in self.subject.plugins)

    @cached_property
    def discovery(self) -> Discovery:
        """The subject and all other installed plugins, asked."""
        others = [point for point in self.neighbours if point not in self.rivals]
        return plugins.discover((*self.subject.points, *others), timeout_s=self.settings.plugin_timeout_s)

    @cached_property
    def offered(self) -> tuple[Specialty, ...]:
        """Everything that the subject offers."""
        offers = [offer for offer in self.discovery.offers if offer.plugin in self.subject.plugins]
        return tuple(specialty for offer in offers for specialty in offer.specialties)

    @cached_property
    def declared(self) -> tuple[Specialty, ...]:
        """What the subject offers and HLO could serve, as far as its declaration goes."""
        return tuple(one for name, one in _sound(self.offered).items() if name not in self.others)

    @cached_property
    def others(self) -> Mapping[str, Specialty]:
        """The specialties of all other plugins, by name."""
        offers = [offer for offer in self.discovery.offers if offer.plugin not in self.subject.plugins]
        return _sound(specialty for offer in offers for specialty in offer.specialties)

    @cached_property
    def model(self) -> BaseModel:
        """The base model."""
        return self._once("model", lambda: assemble.find_model(self.settings))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The base model's tokenizer."""
        return assemble.load_tokenizer(self.model)

    @cached_property
    def context(self) -> int:
        """The longest prompt plus answer, in tokens."""
        return self.settings.max_model_len or self.model.context

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder; it embeds each question once."""
        found = self.given_encoder or self._once(
            "encoder", lambda: assemble.load_encoder(self.settings, self.discovery.hooks)
        )
        return Remembering(found)

    @cached_property
    def versions(self) -> Mapping[str, tuple[Located, AdapterVersion] | HLOError]:
        """Each specialty's adapter, or what is wrong with it."""
        return {specialty.name: self._adapter(specialty) for specialty in self.declared}

    def sound(self) -> Iterator[tuple[Specialty, Located, AdapterVersion]]:
        """The specialties whose adapters hold."""
        for specialty in self.declared:
            found = self.versions[specialty.name]
            if not isinstance(found, HLOError):
                yield specialty, *found

    def _once(self, what: str, make: Callable[[], T]) -> T:
        """Make something; what failed is not tried again, since a model hub may take minutes to fail."""
        if what in self.failed:
            raise self.failed[what]
        try:
            return make()
        except HLOError as error:
            self.failed[what] = error
            raise

    def _adapter(self, specialty: Specialty) -> tuple[Located, AdapterVersion] | HLOError:
        model = self.model
        try:
            return assemble.check_adapter(self.settings, model, specialty, assemble.hub(self.settings))
        except HLOError as error:
            return error


Check = Callable[[Bench], Iterator[Told]]


def _sound(specialties: Iterable[Specialty]) -> dict[str, Specialty]:
    """Those whose declaration holds, by name; of two with one name, the first."""
    found: dict[str, Specialty] = {}
    for specialty in specialties:
        if not problem(catalog.check_declaration, specialty):
            found.setdefault(specialty.name, specialty)
    return found
