"""The hooks of the plugins that were taken: who implements what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from hlo.contracts import Encoder, StartEngine
from hlo.errors import PluginError


class Hook(Struct, frozen=True):
    """One plugin's implementation of a hook, and the names of the arguments that it takes."""

    plugin: str
    function: Callable[..., Any]
    arguments: tuple[str, ...] = ()

    def __call__(self, **given: Any) -> Any:
        """Call it with those of the arguments that it takes."""
        return self.function(**{name: given[name] for name in self.arguments})


class Hooks(Struct, frozen=True):
    """Every hook beside `hlo_specialties`, by its name, in the order of the plugins' names."""

    encoder: tuple[Hook, ...] = ()
    engine: tuple[Hook, ...] = ()
    question: tuple[Hook, ...] = ()
    answer: tuple[Hook, ...] = ()

    def find_encoder(self, name: str) -> Encoder | None:
        """The encoder that a plugin offers under `name`. Raises `PluginError`."""
        wanted = ("name", "fingerprint", "dimension", "encode")
        found: Encoder | None = self._offered(
            "hlo_encoder", self.encoder, name, lambda one: all(hasattr(one, it) for it in wanted)
        )
        return found

    def find_engine(self, name: str) -> StartEngine | None:
        """The start of the engine that a plugin offers under `name`. Raises `PluginError`."""
        found: StartEngine | None = self._offered("hlo_engine", self.engine, name, callable)
        return found

    def _offered(self, hook: str, hooks: Sequence[Hook], name: str, fits: Callable[[Any], bool]) -> Any:
        for one in hooks:
            try:
                offered = one(name=name)
            except Exception as error:
                raise PluginError(
                    f"`{hook}` of the plugin `{one.plugin}` raised {type(error).__name__}: {error}",
                    remedy="Mend the plugin, or leave it out with HLO_PLUGINS.",
                ) from error
            if offered is None:
                continue
            if not fits(offered):
                raise PluginError(
                    f"`{hook}` of the plugin `{one.plugin}` returned {type(offered).__name__}, "
                    "which does not keep the protocol.",
                    remedy="`hlo.contracts` has the protocols.",
                )
            return offered
        return None
