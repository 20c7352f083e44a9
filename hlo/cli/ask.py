"""`hlo ask`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import click
import msgspec
from rich.console import Console

from hlo.cli.options import read, settings_options
from hlo.cli.remote import connection
from hlo.errors import HLOError
from hlo.records import Answer, Delta, Opening, Question, Route
from hlo.settings import Settings


@click.command("ask")
@click.argument("question")
@click.option("--specialty", help="Pin a specialty instead of routing.")
@click.option(
    "--url", envvar="HLO_URL", help="Ask this server, such as http://127.0.0.1:8000; default: start an engine."
)
@settings_options("model", "adapter_path", "device", "quantize", "log_level")
def command(question: str, specialty: str | None, url: str | None, **options: Any) -> None:
    """Ask one question and print the answer as it is generated, and who gave it.

    Without --url this starts an engine in process, which takes half a minute; a server answers at once.
    """
    if url:
        ask_server(url, question, specialty)
    else:
        options["log_level"] = options["log_level"] or "warning"
        asyncio.run(_ask_engine(read(options), Question(question, specialty)))


async def _ask_engine(settings: Settings, question: Question) -> None:
    from hlo.assemble import assemble
    from hlo.telemetry.metrics import Metrics

    with Console(stderr=True).status("starting") as status:
        runtime = await assemble(settings, Metrics(), status.update)
    try:
        async with aclosing(runtime.pipeline.ask(question)) as events:
            async for event in events:
                if isinstance(event, Opening) and event.route:
                    _print_route(event.route)
                elif isinstance(event, Delta):
                    click.echo(event.text, nl=False)
                elif isinstance(event, Answer):
                    adapter = f"{event.adapter.name} {event.adapter.sha256[:12]}" if event.adapter else "none"
                    _print_end(adapter, event.model, event.usage.completion_tokens, event.timings.total_ms)
    finally:
        await runtime.close()


def ask_server(url: str, question: str, specialty: str | None) -> None:
    """Ask a server, printing the route, then the answer as it comes, then who gave it. Raises `HLOError`."""
    body = {"question": question, "stream": True} | ({"specialty": specialty} if specialty else {})
    with connection(url) as server, server.post_stream("/ask", body) as lines:
        for name, data in _events(lines):
            if name == "route":
                _print_route(msgspec.convert(data, Route))
            elif name == "delta":
                click.echo(data["text"], nl=False)
            elif name == "answer":
                adapter = data["adapter"]
                shown = f"{adapter['name']} {adapter['sha256'][:12]}" if adapter else "none"
                _print_end(shown, data["model"], data["usage"]["completion_tokens"], data["timings"]["total_ms"])
                return
            elif name == "problem":
                raise HLOError(data["detail"], remedy=data.get("remedy", ""))
    raise HLOError("The server ended its stream without an answer.", remedy="See its log.")


def _events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def _print_route(route: Route) -> None:
    """The status, who answers, and the three likeliest of the specialties and none of them."""
    likely = [(one.probability, one.specialty) for one in route.scores] + [(route.out_of_scope, "none of them")]
    best = ", ".join(f"{name} {probability:.2f}" for probability, name in sorted(likely, reverse=True)[:3])
    shown = f"  ({best})" if route.scores else ""
    click.secho(f"{route.status}: {route.specialty or 'base model'}{shown}", fg="cyan", err=True)


def _print_end(adapter: str, model: str, tokens: int, total_ms: float) -> None:
    click.echo()
    click.secho(f"model {model}, adapter {adapter}, {tokens} tokens in {total_ms / 1000:.1f} s", fg="cyan", err=True)
