"""HLO's LoRA kernels in vLLM: who asks for them, and what happens where vLLM is another."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
from types import ModuleType
from typing import Any

import pytest

from hlo.generation.vllm_engine import lora_plugin


class Platform:
    """Stands in for vLLM's platform of this machine."""

    gpu = True

    @classmethod
    def is_cuda(cls) -> bool:
        """Whether it is a GPU's."""
        return cls.gpu

    @classmethod
    def get_punica_wrapper(cls) -> str:
        """The name of vLLM's own wrapper."""
        return "theirs"


class Vllm:
    """Stands in for vLLM: its platform, its environment, and the configuration of the engine that is being made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.platform: Any = type("Kind", (Platform,), {})
        self.additional_config: Any = {}
        parts: dict[str, dict[str, Any]] = {
            "vllm": {},
            "vllm.envs": {"VLLM_LORA_ENABLE_DUAL_STREAM": True},
            "vllm.config": {"get_current_vllm_config": lambda: self},
            "vllm.platforms": {"current_platform": self.platform()},
        }
        for name, content in parts.items():
            module = ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)
        self.envs: Any = sys.modules["vllm.envs"]
        vars(sys.modules["vllm"])["envs"] = self.envs

    def wrapper(self, extra: Any) -> str:
        """Whose wrapper an engine gets that has this in its `additional_config`."""
        self.additional_config = extra
        return str(self.platform.get_punica_wrapper())


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Vllm:
    """vLLM on a GPU, with the plugin registered twice, as vLLM may do."""
    made = Vllm(monkeypatch)
    lora_plugin.register()
    lora_plugin.register()
    return made


def test_vllm_finds_the_plugin() -> None:
    """vLLM finds HLO's plugin in each of its processes by its entry point."""
    (found,) = (one for one in importlib.metadata.entry_points(group="vllm.general_plugins") if one.name == "hlo")
    assert found.load() is lora_plugin.register


def test_on_a_cpu_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin leaves vLLM on a CPU as it is."""
    made = Vllm(monkeypatch)
    made.platform.gpu = False
    lora_plugin.register()
    assert "get_punica_wrapper" not in vars(made.platform)


def test_only_engines_that_hlo_starts_get_its_kernels(vllm: Vllm, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that did not ask keeps vLLM's own kernels, though HLO is installed beside it."""
    monkeypatch.setattr(lora_plugin, "_differences", lambda: "")
    assert vllm.wrapper({}) == "theirs"
    assert vllm.wrapper({lora_plugin.KEY: []}) == lora_plugin.OURS
    vllm.envs.VLLM_LORA_ENABLE_DUAL_STREAM = False  # as the operator wants it
    assert vllm.wrapper({lora_plugin.KEY: []}) == "theirs"


def test_another_vllm_keeps_its_own_kernels_and_says_so(
    vllm: Vllm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where vLLM has changed under the kernels, its own are used, and the log says what differs."""
    monkeypatch.setattr(lora_plugin, "_KNOWN", {"BaseLayerWithLoRA.set_mapping": ("something_new",)})
    monkeypatch.setattr(lora_plugin, "_classes", lambda: {"BaseLayerWithLoRA": Known})
    with caplog.at_level(logging.WARNING, logger="hlo"):
        assert vllm.wrapper({lora_plugin.KEY: []}) == "theirs"
    assert "takes no something_new" in caplog.text
    monkeypatch.setattr(lora_plugin, "_KNOWN", {"BaseLayerWithLoRA.gone": ()})
    with caplog.at_level(logging.WARNING, logger="hlo"):
        assert vllm.wrapper({lora_plugin.KEY: []}) == "theirs"
    assert "BaseLayerWithLoRA.gone is gone" in caplog.text


class Known:
    """Stands in for one of vLLM's classes."""

    def set_mapping(self, punica_wrapper: object) -> None:
        """Take it."""


def test_a_vllm_that_raises_keeps_its_own_kernels(
    vllm: Vllm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where looking at vLLM fails altogether, its own kernels are used, and the log says why."""

    def fail() -> dict[str, type]:
        raise ImportError("no such module")

    monkeypatch.setattr(lora_plugin, "_classes", fail)
    with caplog.at_level(logging.WARNING, logger="hlo"):
        assert vllm.wrapper({lora_plugin.KEY: []}) == "theirs"
    assert "ImportError: no such module" in caplog.text
