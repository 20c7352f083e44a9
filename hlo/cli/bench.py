"""`hlo bench`: tunes HLO for this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hlo.cli.options import read, settings_options
from hlo.errors import SettingsError

if TYPE_CHECKING:
    from hlo.generation.base_model import BaseModel
    from hlo.generation.lora_kernels.configs import Layer
    from hlo.generation.lora_kernels.tuning import Found


@click.group("bench")
def command() -> None:
    """Tune HLO's kernels for this machine's GPU."""


@command.command("tune-lora")
@click.option("--rank", type=click.IntRange(1, 128), multiple=True, help="Adapters' rank; default: that of yours.")
@click.option("--adapters", type=click.IntRange(1), help="Adapters in one batch; default: those that are served.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write; default: in HLO_CACHE_DIR, for this GPU.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_options("model", "revision", "adapter_path", "cache_dir", "dtype", "log_level")
def tune_lora(rank: tuple[int, ...], adapters: int | None, out: Path | None, as_json: bool, **options: Any) -> None:
    """Find the fastest configuration of HLO's LoRA kernels for your model and adapters on this GPU.

    Takes some minutes. `hlo serve` finds what was written by itself.
    """
    options["log_level"] = options["log_level"] or "warning"
    settings = read(options)
    import torch

    if not torch.cuda.is_available():
        raise SettingsError(
            "`hlo bench tune-lora` measures on a GPU, and no CUDA device is usable here.",
            remedy="Run it on the machine that serves; check the driver with `nvidia-smi`.",
        )
    from hlo.assemble import collect, find_model
    from hlo.engines import lora_configs
    from hlo.generation.lora_kernels import configs, tuning
    from hlo.generation.memory import padded_rank

    model = find_model(settings)
    versions = [entry.adapter for entry in collect(settings, model)[0].entries.values()]
    ranks = rank or tuple({padded_rank(version.rank) for version in versions}) or (16,)
    kinds = {kind for version in versions for kind in version.modules} or {"q_proj", "k_proj", "v_proj", "o_proj"}
    layers = [layer for one in ranks for layer in layers_of(model, kinds, one)]
    gpu = torch.cuda.get_device_name()
    dtype = torch.float16 if settings.dtype == "float16" else torch.bfloat16
    path = out or lora_configs(settings)[0] / configs.filename(gpu)
    found = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("compiling, then measuring", total=len(layers) * len(tuning.TOKENS))
        for one in tuning.tune(layers, adapters or max(len(versions), 1), dtype):
            found.append(one)
            progress.advance(task)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(tuning.configs(gpu, found))))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        _draw(found, gpu, path)


def layers_of(model: BaseModel, kinds: set[str], rank: int) -> list[Layer]:
    """The linear layers that adapters of `kinds` touch, as vLLM merges them, each shape once."""
    from hlo.generation.lora_kernels.configs import Layer

    found: dict[Layer, None] = {}
    prefix = next((name for name in model.linears if name.endswith("q_proj")), "").rpartition(".")[0]
    block = prefix.rpartition(".")[0]
    for group in (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)):
        names = [name for name in model.linears if name.startswith(f"{block}.") and name.rpartition(".")[2] in group]
        if names and kinds & set(group):
            inputs = model.linears[names[0]][1]
            found[Layer(inputs, tuple(model.linears[name][0] for name in names), rank)] = None
    if not found:
        raise SettingsError(
            f"`{model.name}` has no layers of the kinds that HLO's LoRA kernels are tuned for.",
            remedy="They run there too, by rule; there is nothing to tune.",
        )
    return list(found)


def _draw(found: list[Found], gpu: str, path: Path) -> None:
    table = Table(title=f"LoRA on {gpu}, microseconds")
    for name in ("layer", "rank", "tokens", "product", "LoRA adds", "configuration"):
        table.add_column(name, justify="right")
    for one in found:
        layer = one.tuned.layer
        table.add_row(
            f"{layer.inputs} -> {'+'.join(map(str, layer.outputs))}",
            str(layer.rank),
            f"{one.tuned.tokens:,}",
            f"{one.product_us:.1f}",
            f"{one.whole_us - one.product_us:.1f}",
            "/".join(map(str, msgspec.structs.astuple(one.tuned.config))),
        )
    Console().print(table)
    click.echo(f"written to {path}; `hlo serve` finds it there")
