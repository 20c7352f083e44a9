"""`hlo demo`: the whole of HLO in one command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from hlo.cli.ask import ask_server
from hlo.errors import HLOError

QUESTIONS = (
    "My chest feels tight when I climb the stairs and it goes away when I rest. What could it be?",
    "i'm thirsty all the time and keep getting up at night to pee, my dad had sugar problems too",
    "My mother's hand shakes when it lies still and her steps have become very short. What is happening to her?",
    "What's a good recipe for banana bread?",
)


@click.command("demo")
@click.option("--once", is_flag=True, help="Stop after the questions instead of serving on.")
@click.option("--port", type=int, default=8000, show_default=True, help="Port to listen on; 0: any free one.")
def command(once: bool, port: int) -> None:
    """Start a server, ask it three questions of different specialties and one of none, and keep serving.

    Uses whatever model the settings name; without any, the embedded demonstration model.
    """
    console = Console()
    with tempfile.TemporaryDirectory(prefix="hlo-demo-") as folder:
        log = Path(folder, "server.log")
        with _server(port, log) as process:
            url = _wait(process, log)
            console.print(f"[bold green]ready[/] at {url}\n")
            for question in QUESTIONS:
                console.print(f"[bold]Q[/] {question}", highlight=False)
                ask_server(url, question, None)
                click.echo()
            if once:
                return
            console.print(f"Serving at {url}; its interface is described at {url}/schema. Ctrl-C stops it.")
            try:
                process.wait()
            except KeyboardInterrupt:
                console.print("stopping")


@contextmanager
def _server(port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that is gone afterwards."""
    with log.open("wb") as output:
        command = [sys.executable, "-m", "hlo", "serve", "--port", str(port)]
        # A session of its own: Ctrl-C reaches this process, which then stops the server in good order.
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)  # noqa: S603
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(process: subprocess.Popen[bytes], log: Path) -> str:
    """Show what the server is doing until it is ready; return its address. Raises `HLOError` when it stops instead."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting the server")
        url = ""
        while process.poll() is None:
            time.sleep(0.25)
            url = url or _address(log)
            if url:
                state = _readiness(url)
                if state.get("ready"):
                    return url
                progress.update(task, description=str(state.get("stage", "starting the server")))
    raise HLOError(
        f"The server stopped before it was ready. The end of its log:\n{log.read_text(errors='replace')[-3000:]}",
        remedy="`hlo doctor` examines this machine and these settings.",
    )


def _address(log: Path) -> str:
    _, found, rest = log.read_text(errors="replace").partition("listening on ")
    return rest.split("\n", 1)[0] if found and "\n" in rest else ""


def _readiness(url: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = httpx.get(f"{url}/readyz", timeout=5).json()
    except httpx.TransportError:
        return {}
    return found
