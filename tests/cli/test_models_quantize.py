"""`hlo models quantize`, on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hlo.generation.base_model import BaseModel
    from tests.cli.conftest import Hlo


def test_it_says_what_was_made_and_what_it_costs(tiny_model: BaseModel, hlo: Hlo, tmp_path: Path) -> None:
    """Size, layers, what stays in 16 bit, perplexity of each way to serve, and how to serve it are told."""
    out = tmp_path / "int8"
    done = hlo("models", "quantize", str(tiny_model.folder), "--device", "cpu", "--out", str(out), "--tolerance", "0.5")
    assert done.status == 0, done.err
    report = json.loads((out / "quantize.json").read_text())
    for told in (
        "tiny in int8, by bitsandbytes",
        "14 linear layers",
        "lm_head, model.embed_tokens",
        f"On {report['tokens']:,} tokens",
        f"{report['fits'][0]['perplexity']:,.2f}",
        "int8_weight_only",
        "QUANTIZE=true serves it as int8",
        f"HLO_MODEL={out} QUANTIZE=true hlo serve",
    ):
        assert told in done.out
    again = hlo("models", "quantize", str(tiny_model.folder), "--device", "cpu", "--out", str(out))
    assert (again.status, "--force" in again.err) == (1, True)


def test_json_and_the_operators_text(tiny_model: BaseModel, hlo: Hlo, tmp_path: Path) -> None:
    """`--json` prints the report alone; `--text` is what perplexity is measured on, and must be there."""
    text = tmp_path / "text.txt"
    text.write_text("chest pain")
    arguments = ["models", "quantize", str(tiny_model.folder), "--device", "cpu", "--json"]
    done = hlo(*arguments, "--out", str(tmp_path / "int8"), "--text", str(text))
    told = json.loads(done.out)
    assert (told["base"], told["folder"], told["serve_as"]) == ("tiny", str(tmp_path / "int8"), "int8")
    assert 1 < told["tokens"] < 10
    absent = hlo(*arguments, "--out", str(tmp_path / "other"), "--text", str(tmp_path / "absent"))
    assert (absent.status, "can not be read" in absent.err) == (1, True)
    assert not (tmp_path / "other").exists()


def test_without_measuring(tiny_model: BaseModel, hlo: Hlo, tmp_path: Path) -> None:
    """`--no-evaluate` reads no text and tells no perplexity; without `--out` the folder is named after the model."""
    done = hlo("models", "quantize", str(tiny_model.folder), "--device", "cpu", "--no-evaluate")
    assert done.status == 0, done.err
    assert "perplexity" not in done.out
    assert json.loads(Path("tiny-int8/quantize.json").read_text())["fits"] == []
