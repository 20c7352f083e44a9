"""Fixtures for tests of plugins: `pytest_plugins = ["hlo.testing.fixtures"]` in the top `conftest.py`.

    def test_conformance(conformance):
        conformance("joints")

The only module of HLO that needs pytest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hlo import assemble
from hlo.contracts import Encoder
from hlo.records import Finding
from hlo.settings import Settings
from hlo.testing.conformance import Examination, examine
from hlo.testing.remembering import Remembering
from hlo.testing.subject import find

Conformance = Callable[..., tuple[Finding, ...]]


@pytest.fixture(scope="session")
def hlo_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """HLO's settings; override this fixture to examine with others.

    Without HLO_CACHE_DIR the cache goes with the tests, and what no specialty answers is embedded anew each time.
    """
    settings = Settings(log_level="error")
    if "cache_dir" in settings.model_fields_set:
        return settings
    return Settings(cache_dir=tmp_path_factory.mktemp("hlo-cache"), log_level="error")


@pytest.fixture(scope="session")
def hlo_encoder(hlo_settings: Settings) -> Encoder:
    """The encoder that the settings name; it embeds each question once in all tests."""
    return Remembering(assemble.load_encoder(hlo_settings, assemble.discover(hlo_settings).hooks))


@pytest.fixture(scope="session")
def conformance(hlo_settings: Settings, request: pytest.FixtureRequest) -> Conformance:
    """Examine a plugin, by name or path: `conformance("joints", engine=False)`, with the options of `examine`.

    Returns the findings, and raises `AssertionError` with those that are trouble. A plugin is examined once in all
    tests, unless the options differ.
    """
    known: dict[str, Examination] = {}

    def check(name_or_path: str | Path, **options: Any) -> tuple[Finding, ...]:
        key = repr((str(name_or_path), sorted(options.items())))
        if key not in known:
            given = {"encoder": request.getfixturevalue("hlo_encoder")} | options
            with find(name_or_path) as subject:
                known[key] = examine(subject, hlo_settings, **given)
        troubles = [one for one in known[key].findings if one.state == "trouble"]
        if troubles:
            lines = [f"  {one.topic}: {one.text}\n    {one.remedy}".rstrip() for one in troubles]
            raise AssertionError("\n".join([f"{name_or_path} does not conform:", *lines]))
        return known[key].findings

    return check
