"""`hlo models`."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import Any, Literal

import click
import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hlo.cli.lazy import LazyGroup
from hlo.cli.options import read, settings_options
from hlo.errors import EncoderError, HLOError, HubError
from hlo.hub import SCHEME, Hub, Plan, Reference
from hlo.records import Specialty
from hlo.settings import Settings

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

logger = logging.getLogger("hlo")


class _Wanted(Struct, frozen=True):
    """Something on a model hub that these settings and plugins use; `specialty` is whose adapter it is."""

    what: str
    reference: str
    patterns: Collection[str]
    ignore: Collection[str] = ()
    specialty: Specialty | None = None


class _Row(Struct):
    """What is told of one wanted thing; sizes are in bytes, `absent` of them are not in the cache before the fetch."""

    what: str
    reference: str
    state: Literal["planned", "fetched", "failed"] = "planned"
    commit: str = ""
    size: int = 0
    absent: int = 0
    reason: str = ""
    remedy: str = ""

    def fail(self, error: HLOError) -> None:
        self.state, self.reason, self.remedy = "failed", error.message, error.remedy


# Help texts are here, so that listing the commands imports none of them.
_ELSEWHERE = {
    "export-encoder": "Export an encoder for a fast start and fast routing on CPUs.",
    "quantize": "Make an 8-bit checkpoint of a model with bitsandbytes, and measure what that costs.",
}


@click.group("models", cls=LazyGroup, elsewhere=_ELSEWHERE, prefix="hlo.cli.models_")
def command() -> None:
    """Models: fetch them from a model hub and pin them in the lock file; make an encoder fast, a model small."""


@command.command("fetch")
@click.option("--dry-run", is_flag=True, help="Show what would be fetched, and fetch nothing.")
@click.option("--upgrade", is_flag=True, help="Take branches and tags as they are now, not as the lock file has them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_options(
    "model",
    "revision",
    "base_name",
    "encoder",
    "adapter_path",
    "max_lora_rank",
    "plugins",
    "lock_file",
    "cache_dir",
    "log_level",
)
def fetch(dry_run: bool, upgrade: bool, as_json: bool, **options: Any) -> None:
    """Fetch the base model, the encoder and the adapters that lie on a model hub, and write the lock file.

    What the lock file has already stays at its commit, unless --upgrade. Exits 1 when something can not be fetched, or
    is no adapter of the base model; the rest is fetched nevertheless.
    """
    options["log_level"] = options["log_level"] or "warning"
    settings = read(options)
    hub = Hub.open(settings.lock_file, production=False)  # what is to be pinned is not pinned yet
    console = Console(stderr=True)
    with console.status("asking the model hub"):
        wanted = _wanted(settings)
        rows, plans = _plan(hub, wanted, upgrade)
    needed = _needed(plans.values())
    if not as_json:
        _draw(rows, hub, needed)
    if not dry_run and plans:
        hub.check_room(needed)
        hub = _fetch(hub, rows, plans)
        with console.status("checking the adapters"):
            _check(settings, hub, wanted, rows)
    if as_json:
        told = {"cache": hub.folder, "needed": needed, "free": hub.free, "lock_file": hub.lock.path, "models": rows}
        click.echo(msgspec.json.encode(told, enc_hook=str).decode())
    else:
        _report(rows, hub, dry_run)
    if any(row.state == "failed" for row in rows):
        raise SystemExit(1)


def _wanted(settings: Settings) -> list[_Wanted]:
    """Everything on a model hub that these settings and the installed plugins use."""
    from hlo.assemble import declarations
    from hlo.generation import adapters, base_model
    from hlo.routing import encoders, sentence_encoder

    found = []
    declared, hooks = declarations(settings)
    model = base_model.on_hub(settings.model, settings.revision)
    if model is not None:
        found.append(_Wanted("base model", str(model), base_model.FILES, base_model.IGNORED))
    try:
        encoder = encoders.on_hub(settings.encoder)
    except EncoderError:
        encoder = None  # a plugin's encoder can have any name
    if encoder is not None and hooks.find_encoder(settings.encoder) is None:
        found.append(_Wanted("encoder", str(encoder), sentence_encoder.FILES, sentence_encoder.IGNORED))
    return found + [
        _Wanted(f"adapter {one.name}", one.adapter.reference, adapters.FILES, (), one)
        for one in declared
        if one.adapter.package is None and one.adapter.reference.startswith(SCHEME)
    ]


def _plan(hub: Hub, wanted: Iterable[_Wanted], upgrade: bool) -> tuple[list[_Row], dict[int, Plan]]:
    """A row for each wanted thing, and by the row's number what its fetch would need."""
    rows, plans = [], {}
    for number, one in enumerate(wanted):
        row = _Row(one.what, one.reference)
        rows.append(row)
        try:
            plan = hub.plan(Reference.parse(one.reference), one.patterns, one.ignore, upgrade=upgrade)
        except HubError as error:
            row.fail(error)
        else:
            plans[number] = plan
            row.commit, row.size, row.absent = plan.commit, plan.size, plan.missing
    return rows, plans


def _needed(plans: Iterable[Plan]) -> int:
    """Bytes that are to be fetched; a file that two plans name counts once."""
    return sum(
        {
            (plan.reference.repo, plan.files[name].sha256 or plan.files[name].blob or name): plan.files[name].size
            for plan in plans
            for name in plan.absent
        }.values()
    )


def _fetch(hub: Hub, rows: list[_Row], plans: dict[int, Plan]) -> Hub:
    """Fetch each plan and lock what came; returns the hub with the new lock, which is written after each."""
    for number, plan in plans.items():
        try:
            before = hub.lock.references.get(str(plan.reference))
            lock = hub.lock.having(plan.reference, hub.fetch(plan, before))
        except HubError as error:
            rows[number].fail(error)
        else:
            lock.write()
            hub = Hub(lock)
            rows[number].state = "fetched"
    return hub


def _check(settings: Settings, hub: Hub, wanted: list[_Wanted], rows: list[_Row]) -> None:
    """Check the fetched adapters against the base model, when that is there."""
    from hlo.assemble import check_adapter
    from hlo.generation import base_model

    fetched = [
        (one.specialty, row)
        for one, row in zip(wanted, rows, strict=True)
        if one.specialty is not None and row.state == "fetched"
    ]
    if not fetched or any(row.what == "base model" and row.state == "failed" for row in rows):
        return
    model = base_model.find(settings.model, settings.revision, name=settings.base_name, hub=hub)
    for specialty, row in fetched:
        try:
            check_adapter(settings, model, specialty, hub)
        except HLOError as error:
            row.fail(error)


def _draw(rows: Iterable[_Row], hub: Hub, needed: int) -> None:
    table = Table(title=f"From {hub.url}")
    for column in ("what", "reference", "commit"):
        table.add_column(column)
    table.add_column("size", justify="right")
    table.add_column("to fetch", justify="right")
    for row in rows:
        absent = Text("in the cache", "green") if not row.absent else Text(_size(row.absent))
        told = (Text("?", "red"), Text("")) if row.state == "failed" else (Text(_size(row.size)), absent)
        table.add_row(Text(row.what), Text(row.reference, overflow="fold"), row.commit[:12], *told)
    console = Console()
    if table.row_count:
        console.print(table)
    console.print(Text(f"To fetch: {_size(needed)}; free in {hub.folder}: {_size(hub.free)}."), soft_wrap=True)


def _report(rows: list[_Row], hub: Hub, dry_run: bool) -> None:
    for row in rows:
        if row.state == "failed":
            click.echo(f"{row.what}: {row.reason}\n  {row.remedy}")
    fetched = sum(row.state == "fetched" for row in rows)
    if not rows:
        click.echo("Nothing that these settings and plugins use lies on a model hub.")
    elif not dry_run and fetched:
        click.echo(f"{fetched} of {len(rows)} fetched and verified; commits and hashes are in {hub.lock.path}.")


def _size(count: float) -> str:
    for unit in _UNITS:
        if count < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
