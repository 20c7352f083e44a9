"""Command line of the recipe: ``python -m adapters.recipe STEP`` or ``python adapters/recipe``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if not __package__:
    sys.path.insert(0, str(ROOT))

from adapters.recipe import (  # noqa: E402
    base,
    cards,
    evaluate,
    lora,
    medquad,
    tokenizer,
    training,
)
from adapters.recipe.settings import (  # noqa: E402
    BASE_NAME,
    SPECIALTIES,
    BaseTraining,
    Files,
    LoraTraining,
    ModelShape,
)

TINY_SHAPE = ModelShape(vocab=1024, hidden=64, layers=2, heads=2, kv_heads=1, head_dim=32, intermediate=128)


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    line = argparse.ArgumentParser(prog="python -m adapters.recipe", description=__doc__)
    line.add_argument("step", choices=[*STEPS, "all"], help="what to do; all = every training step")
    line.add_argument("--data", type=Path, default=ROOT / ".data", help="folder of the data files")
    line.add_argument("--model", type=Path, default=ROOT / "models" / BASE_NAME)
    line.add_argument("--adapters", type=Path, default=ROOT / "adapters")
    line.add_argument("--pairs", type=Path, default=ROOT / "tests/data/specialty_pairs.toml")
    line.add_argument("--medquad", type=Path, help="convert: a clone of the MedQuAD repository")
    line.add_argument("--only", nargs="*", default=list(SPECIALTIES), metavar="SPECIALTY")
    line.add_argument("--device", default="auto", help="auto, cuda or cpu")
    line.add_argument("--epochs", type=int, help="epochs of the base model")
    line.add_argument("--dropout", type=float, help="dropout of the base model")
    line.add_argument("--exposure", type=float, help="share of specialty diseases the base sees")
    line.add_argument("--rates", type=float, nargs="*", help="learning rates to try for adapters")
    line.add_argument("--rounds", type=int, nargs="*", help="numbers of epochs to try for adapters")
    line.add_argument("--fast", action="store_true", help="evaluate held-back rows in bfloat16")
    line.add_argument("--tiny", action="store_true", help="a few seconds' try-out on little data")
    return line


def _splits(args: argparse.Namespace, files: Files, how: BaseTraining) -> medquad.Splits:
    rows = medquad.read_rows(files.answers)
    if args.tiny:
        rows = rows[::40]
    return medquad.split(
        rows,
        medquad.read_labels(files.train_labels),
        medquad.read_labels(files.held_back_labels),
        how.exposure,
    )


def _base_training(args: argparse.Namespace) -> BaseTraining:
    how = BaseTraining()
    if args.tiny:
        how = replace(how, epochs=1, batch_tokens=8192, warmup_steps=2)
    given = {name: getattr(args, name) for name in ("epochs", "dropout", "exposure")}
    return replace(how, **{name: value for name, value in given.items() if value is not None})


def _notes(files: Files, **facts: Any) -> None:
    path = files.model / "training.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **facts}, indent=2) + "\n")


def step_convert(args: argparse.Namespace, files: Files) -> None:
    """Convert a clone of the public MedQuAD repository into the data files."""
    if args.medquad is None:
        raise SystemExit("convert needs --medquad, the folder of a clone of the MedQuAD repository")
    medquad.write_converted(medquad.convert(args.medquad), files.data)


def step_tokenizer(args: argparse.Namespace, files: Files) -> None:
    """Train the tokenizer on every row that is not held back."""
    splits = _splits(args, files, replace(_base_training(args), exposure=1.0))
    made = tokenizer.train_tokenizer(splits.base, TINY_SHAPE if args.tiny else ModelShape())
    tokenizer.save_tokenizer(made, files.model)
    tokenizer.check_tokenizer(tokenizer.load_tokenizer(files.model))


def step_base(args: argparse.Namespace, files: Files) -> None:
    """Train and save the base model."""
    how = _base_training(args)
    shape = TINY_SHAPE if args.tiny else ModelShape()
    start = time.monotonic()
    words = tokenizer.load_tokenizer(files.model)
    splits = _splits(args, files, how)
    model = base.train_base(words, splits, shape, how, training.pick_device(args.device))
    size = sum(parameter.numel() for parameter in model.parameters())
    base.save_base(model, files.model)
    _notes(
        files,
        parameters=size,
        base_rows=len(splits.base),
        base=asdict(how),
        base_seconds=round(time.monotonic() - start),
    )


def step_adapters(args: argparse.Namespace, files: Files) -> None:
    """Train and save the adapters (``--only`` some of them)."""
    how = LoraTraining()
    if args.tiny:
        how = replace(how, epochs=(1,), learning_rates=(2e-3,), max_tokens=8000)
    if args.rates:
        how = replace(how, learning_rates=tuple(args.rates))
    if args.rounds:
        how = replace(how, epochs=tuple(args.rounds))
    words = tokenizer.load_tokenizer(files.model)
    splits = _splits(args, files, _base_training(args))
    for name in args.only:
        start = time.monotonic()
        facts = lora.train_adapter(
            words, splits, name, files.model, files.adapters, how, training.pick_device(args.device)
        )
        facts["seconds"] = round(time.monotonic() - start)
        path = files.adapters / name / "training.json"
        path.write_text(json.dumps(facts, indent=2) + "\n")
        print(name, json.dumps(facts), flush=True)


def step_evaluate(args: argparse.Namespace, files: Files) -> None:
    """Measure every adapter on the held-back rows and on the hand-written pairs."""
    report = evaluate.evaluate(
        tokenizer.load_tokenizer(files.model),
        _splits(args, files, _base_training(args)),
        files.model,
        files.adapters,
        files.pairs,
        training.pick_device(args.device),
        args.fast,
    )
    evaluate.write_report(report, files.perplexity)


def step_cards(args: argparse.Namespace, files: Files) -> None:
    """Write the model cards from the measured files."""
    cards.write_cards(files.model, files.adapters)


STEPS: dict[str, Callable[[argparse.Namespace, Files], None]] = {
    "convert": step_convert,
    "tokenizer": step_tokenizer,
    "base": step_base,
    "adapters": step_adapters,
    "evaluate": step_evaluate,
    "cards": step_cards,
}


def main() -> None:
    """Run one step, or all of them but convert."""
    args = parser().parse_args()
    files = Files(args.data, args.model, args.adapters, args.pairs)
    steps = [name for name in STEPS if name != "convert"] if args.step == "all" else [args.step]
    for name in steps:
        print(f"== {name}", flush=True)
        STEPS[name](args, files)


if __name__ == "__main__":
    main()
