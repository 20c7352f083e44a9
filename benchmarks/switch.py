"""How long does it take to switch the adapter? HLO's `/switch-adapter`, against rebuilding the engine each time.

The second is what a single-adapter server does: stop the engine and start one with the other adapter.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping

import msgspec

from benchmarks.report import median, tell
from hlo import engines
from hlo.assemble import assemble
from hlo.catalog import Catalog
from hlo.plugins import Hooks
from hlo.service.state import Service
from hlo.settings import load_settings
from hlo.telemetry.metrics import Metrics

SWITCHES = 1000
REBUILDS = 3


async def run() -> None:
    """Measure, and tell."""
    with tempfile.TemporaryDirectory() as cache:
        settings = load_settings(cache_dir=cache, log_level="warning")
        runtime = await assemble(settings, Metrics(), lambda stage: print(stage, flush=True))

        async def never(*_: object) -> None:
            raise AssertionError("started already")

        service = Service(settings, never)  # type: ignore[arg-type]
        service._runtime = runtime
        names = list(runtime.pipeline.catalog.entries)
        switches = []
        for number in range(SWITCHES):
            clock = time.perf_counter()
            service.switch(names[number % len(names)], field="$.adapter_name")
            switches.append(time.perf_counter() - clock)
        catalog, model = runtime.pipeline.catalog, runtime.model
        await runtime.close()
        rebuilds = []
        for name in names[:REBUILDS]:
            entries: Mapping[str, object] = {name: catalog.entries[name]}
            clock = time.perf_counter()
            engine = await engines.start(settings, model, msgspec.structs.replace(catalog, entries=entries), Hooks())
            await engine.load(catalog.entries[name].adapter)
            rebuilds.append(time.perf_counter() - clock)
            await engine.close()
        assert isinstance(catalog, Catalog)
        tell(
            "switch",
            "How long does it take to switch the adapter?",
            [
                {"way": "HLO: /switch-adapter", "median s": median(switches), "times faster": ""},
                {
                    "way": "rebuild the engine",
                    "median s": median(rebuilds),
                    "times faster": f"{median(rebuilds) / median(switches):,.0f}",
                },
            ],
        )


if __name__ == "__main__":
    asyncio.run(run())
