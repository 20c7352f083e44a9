"""What the commands below `hlo route` share: a labelled file, compared with everything that is installed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from rich.console import Console
from rich.progress import Progress

from hlo.errors import SettingsError
from hlo.settings import Settings

if TYPE_CHECKING:
    from hlo.contracts import Encoder
    from hlo.routing.bank import Comparison
    from hlo.routing.labelled import Labelled
    from hlo.routing.router import Router


class Compared(Struct, frozen=True):
    """Labelled questions, how close each came, and the router and the encoder that say so."""

    questions: tuple[Labelled, ...]
    comparisons: tuple[Comparison, ...]
    router: Router
    encoder: Encoder


def compare(file: Path, settings: Settings) -> Compared:
    """Read a labelled file and compare its questions, with a progress bar. Raises `HLOError`."""
    from hlo.routing import labelled

    questions = labelled.read(file)
    if not questions:
        raise SettingsError(f"`{file}` holds no question.", remedy="Write labelled questions into it, one a line.")
    return asyncio.run(_compare(file, questions, settings))


async def _compare(file: Path, questions: tuple[Labelled, ...], settings: Settings) -> Compared:
    from hlo.assemble import assemble_router
    from hlo.routing.labelled import refuse_strangers

    console = Console(stderr=True)
    with console.status("loading the encoder and the routing examples"):
        router, encoder = await assemble_router(settings)
    try:
        refuse_strangers(file, questions, router.bank.names)
        found: list[Comparison] = []
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("comparing the questions", total=len(questions))
            for start in range(0, len(questions), settings.encoder_batch):
                batch = questions[start : start + settings.encoder_batch]
                found += await router.compare([one.text for one in batch])
                progress.advance(bar, len(batch))
    finally:
        encoder.close()
    return Compared(questions, tuple(found), router, encoder.encoder)
