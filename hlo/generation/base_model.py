"""Finds the base model, and knows the shape of every linear layer in it without reading its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from hlo.errors import HubError, ModelError
from hlo.generation.quantize import checkpoint
from hlo.hub import Hub, Reference

EMBEDDED_NAME = "hlo-demo-10m"
# What is fetched of a model on a hub; weights other than safetensors stay there.
FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model*", "*.txt")
IGNORED = ("consolidated*",)  # Mistral's repositories hold all weights a second time, in another layout


class BaseModel(Struct, frozen=True):
    """The base model on disk. `name` is the last part of how it was asked for; adapters name their base by it.

    `linears` maps the name of each linear layer that an adapter may touch to its weight's shape, (out, in);
    `parameters` counts all of the model's values.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    linears: Mapping[str, tuple[int, int]]
    parameters: int
    embedded: bool

    @property
    def context(self) -> int:
        """The longest prompt plus answer that it was made for, in tokens; 4096 where its configuration says nothing."""
        text = self.config.get("text_config") or self.config
        return int(text.get("max_position_embeddings") or 4096)


def embedded_root() -> Path:
    """The folder that holds `models/` and `adapters/` of the demonstration: in the wheel, or beside the source."""
    package = Path(__file__).resolve().parents[1]
    return package / "embedded" if (package / "embedded").is_dir() else package.parent


def find(reference: str, revision: str | None = None, *, name: str | None = None, hub: Hub | None = None) -> BaseModel:
    """Find a model: a folder, a hub's `org/name` or `hf://org/name@revision`, or "" for the embedded one.

    `name` overrides the name that adapters must give as their base. What lies on a model hub is had through `hub`
    (default: unpinned, with huggingface_hub's own cache). Raises `ModelError` or `HubError`.
    """
    wanted = on_hub(reference, revision)
    if not reference:
        folder = embedded_root() / "models" / EMBEDDED_NAME
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"The embedded model is not in `{folder}`.",
                remedy="Set HLO_MODEL to a folder or a hub's model, or reinstall HLO with its models.",
            )
    elif wanted is None:
        folder = Path(reference).expanduser().resolve()
    else:
        folder = (hub or Hub()).snapshot(wanted, FILES, IGNORED).folder
    config = _read_config(folder)
    linears, parameters = _shapes(folder)
    # An int8 checkpoint goes by the name of its original: adapters know it by that.
    own = checkpoint.report(folder).get("base") or Path(wanted.repo if wanted else reference).name
    return BaseModel(
        name=name or own or EMBEDDED_NAME,
        folder=folder,
        config=config,
        linears=linears,
        parameters=parameters,
        embedded=not reference,
    )


def on_hub(reference: str, revision: str | None = None) -> Reference | None:
    """What `find` would fetch from a model hub; None for a folder and for the embedded model. Raises `ModelError`."""
    if not reference or Path(reference).expanduser().is_dir():
        return None
    try:
        return Reference.of_model(reference, revision)
    except HubError as error:
        raise ModelError(
            f"`{reference}` is neither a folder nor a hub's `org/name`: {error.message}",
            remedy="Check HLO_MODEL and HLO_REVISION for a misspelling; a folder must exist.",
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"`{folder}` holds no config.json.", remedy="Point HLO_MODEL at a model in Hugging Face layout."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"`{folder}/config.json` is not JSON: {error}", remedy="Fetch the model again.") from error
    if not isinstance(config, dict) or "architectures" not in config:
        raise ModelError(
            f"`{folder}/config.json` names no architecture.", remedy="Point HLO_MODEL at a causal language model."
        )
    return config


def _shapes(folder: Path) -> tuple[dict[str, tuple[int, int]], int]:
    """Build the model without memory (torch's meta device); list its decoder blocks' linear layers, count its values.

    The output head is left out: HLO takes adapters on decoder blocks only.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # a configuration can make transformers raise anything
        raise ModelError(
            f"`{folder}/config.json` describes no causal language model that this version of transformers knows: "
            f"{error}",
            remedy="Upgrade transformers, or choose another model.",
        ) from error
    head = model.get_output_embeddings()
    linears = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    return linears, sum(parameter.numel() for parameter in model.parameters())
