"""Makes an int8 checkpoint of a model, whole or not at all, and says what it costs and how it is best served."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from hlo.errors import ModelError
from hlo.generation.base_model import BaseModel
from hlo.generation.quantize import checkpoint, evaluation, writing
from hlo.generation.quantize.checkpoint import ServeAs
from hlo.generation.quantize.evaluation import Fit


class Report(Struct, frozen=True):
    """What was made. Sizes are of the weights' files, in bytes; `kept` names the matrices that stay in 16 bit.

    `base` is the original's name, by which adapters call it. `tolerance` is the rise of perplexity that the operator
    tolerates, as a share, and `serve_as` what keeps within it.
    """

    base: str
    method: str
    layers: int
    kept: tuple[str, ...]
    size_before: int
    size_after: int
    tokens: int
    fits: tuple[Fit, ...]
    tolerance: float | None
    serve_as: ServeAs
    seconds: float


def make(
    model: BaseModel,
    out: Path,
    *,
    text: str | None,
    tolerance: float | None,
    device: str,
    dtype: str,
    force: bool,
    progress: writing.Progress,
    report: Callable[[str], None],
) -> Report:
    """Write the checkpoint to `out`, with the report beside it; without a `text`, nothing is measured.

    Raises `SettingsError` without bitsandbytes, and `ModelError` when `out` is taken or the tolerance can not be kept;
    then nothing is left behind.
    """
    start = time.perf_counter()
    writing.check_packages()
    taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if taken and (not force or not (out / "config.json").is_file()):
        raise ModelError(
            f"`{out}` exists already{'' if not force else ' and is no model'}.",
            remedy="Name another folder with --out" + ("." if force else ", or replace it with --force."),
        )
    if out.resolve() == model.folder.resolve():
        raise ModelError(f"`{out}` is the original model.", remedy="Name another folder with --out.")
    with _beside(out) as folder:
        writing.write(model, folder, progress)
        made = checkpoint.read(folder)
        tokens, fits = 0, tuple[Fit, ...]()
        if text is not None:
            tokens, fits = evaluation.evaluate(model, made, text, device=device, dtype=dtype, report=report)
        told = Report(
            base=model.name,
            method=f"bitsandbytes {writing.version()}, int8, absmax of each row",
            layers=len(made.layers),
            kept=tuple(sorted(made.kept)),
            size_before=sum(file.stat().st_size for file in checkpoint.weight_files(model.folder)),
            size_after=made.size,
            tokens=tokens,
            fits=fits,
            tolerance=tolerance,
            serve_as=serve_as(fits, tolerance),
            seconds=time.perf_counter() - start,
        )
        written = msgspec.json.format(msgspec.json.encode(told), indent=1)
        (folder / checkpoint.REPORT).write_bytes(written + b"\n")
        _move(folder, out)
    return told


def serve_as(fits: tuple[Fit, ...], tolerance: float | None) -> ServeAs:
    """The fastest way whose perplexity rises by no more than the tolerance. Raises `ModelError` when none does."""
    if tolerance is None:
        return "int8"
    by_name = {fit.quantization: fit.perplexity for fit in fits}
    if not by_name:
        raise ModelError("A tolerance needs something to measure.", remedy="Leave out --no-evaluate.")
    rises = {name: by_name[name] / by_name["none"] - 1 for name in ("int8", "int8_weight_only")}
    ways: tuple[ServeAs, ...] = ("int8", "int8_weight_only")
    for way in ways:
        if rises[way] <= tolerance:
            return way
    raise ModelError(
        f"Perplexity rises by {min(rises.values()):.2%} at least, more than the tolerated {tolerance:.2%}.",
        remedy="Serve the model in 16 bit, or tolerate more.",
    )


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder to write to, on the same file system, of which nothing is left unless it was moved away."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as work:
            folder = Path(work) / "model"
            folder.mkdir()
            yield folder
    except OSError as error:
        raise ModelError(f"`{out}` can not be written: {error}", remedy="Name another disk with --out.") from error


def _move(folder: Path, out: Path) -> None:
    """Put the finished folder in its place; what was there is gone only when the new one is there."""
    old = folder.with_name("replaced")  # goes with the folder that both are in
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
