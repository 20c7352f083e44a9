"""The adapters in a loaded model. The only importer of peft, whose errors are told as `AdapterError`."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedModel

from hlo.contracts import EngineOptions
from hlo.errors import AdapterError, ModelError
from hlo.generation.room import check_room
from hlo.records import AdapterVersion

with warnings.catch_warnings():  # PEFT loads bitsandbytes where that is installed, and torch's compiler with it
    warnings.filterwarnings("ignore", r"`torch\.jit\.script_method`", DeprecationWarning)
    from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer


class Adapters:
    """The loaded adapters, and `model`: the base with all of them in it, or bare where there are to be none.

    Raises `ModelError` when the base has none of the kinds of layer that are to be adapted.
    """

    def __init__(self, base: PreTrainedModel, options: EngineOptions) -> None:
        self.model = _adaptable(base, options) if options.kinds else base
        self._options = options
        self._numbers = itertools.count(1)
        self._names: dict[str, str] = {}

    def choice(self, names: list[str]) -> dict[str, Any]:
        """The argument of `model` that says which row has which adapter, by PEFT's names."""
        return {"adapter_names": names} if self._options.kinds else {}

    def peft_name(self, adapter: AdapterVersion | None) -> str:
        """PEFT's name of a loaded adapter, or of none. Raises `AdapterError` for one that is not loaded."""
        if adapter is None:
            return "__base__"
        name = self._names.get(adapter.engine_name)
        if name is None:
            raise AdapterError(f"The adapter `{adapter.engine_name}` is not loaded.", remedy="Load it before using it.")
        return name

    def load(self, adapter: AdapterVersion) -> None:
        """Load an adapter under a number of its own: PEFT takes no name with a dot in it. Raises `AdapterError`."""
        if adapter.engine_name in self._names:
            return
        check_room(adapter, self._options, len(self._names), self._options.rank)
        name = f"adapter{next(self._numbers)}"
        try:
            self._add(adapter.path.resolve(), name)
        except Exception as error:  # PEFT has no errors of its own
            self._remove(name)
            raise AdapterError(
                f"PEFT refused the adapter `{adapter.name}` ({adapter.sha256[:12]}): {error}",
                remedy="Check that it was trained on this base model.",
            ) from error
        self._names[adapter.engine_name] = name

    def unload(self, adapter: AdapterVersion) -> str | None:
        """Delete an adapter, if it is loaded; returns the name that PEFT had for it."""
        name = self._names.pop(adapter.engine_name, None)
        if name is not None:
            self._remove(name)
        return name

    def _add(self, folder: Path, name: str) -> None:
        """Put an adapter's weights into the model, all of them. What fails may leave some there."""
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = True
        config.init_lora_weights = True  # layers without weights do nothing, whatever the training began with
        weights = load_file(folder / "adapter_model.safetensors", device=str(self.model.device))
        self.model.add_adapter(name, config)
        strays = set_peft_model_state_dict(self.model, weights, adapter_name=name).unexpected_keys
        if strays:
            raise ValueError(f"there is no place for its weights `{strays[0]}`.")
        self.model.eval()

    def _remove(self, name: str) -> None:
        """Take an adapter out of every layer; PEFT's own `delete_adapter` knows nothing of one that failed half-way."""
        for module in self.model.modules():
            if isinstance(module, BaseTunerLayer):
                module.delete_adapter(name)
        self.model.peft_config.pop(name, None)


def _adaptable(base: PreTrainedModel, options: EngineOptions) -> PeftModel:
    """Wrap the model for PEFT, with an adapter that no request uses: PEFT has no model without one."""
    config = LoraConfig(r=1, target_modules=list(options.kinds), task_type="CAUSAL_LM", inference_mode=True)
    try:
        return get_peft_model(base, config, adapter_name="foundation").eval()
    except ValueError as error:
        raise ModelError(
            f"PEFT can not adapt `{options.model}` on {', '.join(options.kinds)}: {error}",
            remedy="Check that the adapters are for this base model.",
        ) from error
