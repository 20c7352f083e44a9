"""Every hook that a plugin can implement.

Hooks are plain functions (an `async def` is refused), all named `hlo_*`; a module-level function marked with
`@hookimpl` in the module that the entry point names is enough. A plugin that misspells a hook is refused by name.
"""

from __future__ import annotations

import pluggy

from hlo.records import Specialty

hookspec = pluggy.HookspecMarker("hlo")
hookimpl = pluggy.HookimplMarker("hlo")


@hookspec
def hlo_specialties() -> list[Specialty]:  # type: ignore[empty-body]  # a specification has no body
    """Offer specialties.

    Called once when HLO starts (and once at each reload), before the engine exists; never at request time, so what it
    returns is final for that run. An empty list offers nothing and is not an error. When it raises, or returns
    anything but a list of `Specialty`, the whole plugin is refused with the reason, and all others keep serving.
    """
