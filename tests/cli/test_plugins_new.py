"""`hlo plugins new`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Hlo


def test_what_was_written_and_what_is_next(hlo: Hlo, clean_environment: Path) -> None:
    """The command writes to the current folder, draws what it wrote, and names three commands that use the package."""
    done = hlo("plugins", "new", "rheumatology")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == [
        "hlo-rheumatology",
        "├── .gitignore",
        "├── CHANGELOG.md",
        "├── LICENSE",
        "├── README.md",
        "├── pyproject.toml",
        "├── src/",
        "│   └── hlo_rheumatology/",
        "│       ├── __init__.py",
        "│       ├── adapter/",
        "│       │   ├── README.md",
        "│       │   ├── adapter_config.json",
        "│       │   └── adapter_model.safetensors",
        "│       ├── examples.toml",
        "│       └── py.typed",
        "└── tests/",
        "    ├── conftest.py",
        "    └── test_rheumatology.py",
        "",
        "Next:",
        "  python -m pip install -e 'hlo-rheumatology[test]'",
        "  python -m pytest hlo-rheumatology",
        "  hlo plugins check rheumatology",
    ]
    drawn = {line.split()[-1].rstrip("/") for line in done.out.splitlines()[1:18]}
    assert {path.name for path in (clean_environment / "hlo-rheumatology").rglob("*")} == drawn


def test_title_and_output(hlo: Hlo, tmp_path: Path) -> None:
    """Title and folder can be chosen; a folder that a shell would split is quoted in the commands."""
    output = tmp_path / "two [b]words[/b]"
    done = hlo("plugins", "new", "sports_medicine", "--title", "Sports and exercise", "--output", str(output))
    folder = output / "hlo-sports-medicine"
    assert 'title="Sports and exercise"' in (folder / "src/hlo_sports_medicine/__init__.py").read_text(encoding="utf-8")
    assert done.out.splitlines()[0] == str(folder)
    assert f"  python -m pytest '{folder}'" in done.out.splitlines()


@pytest.mark.parametrize("name", ["../x", "Foo", "base", "a b", "cardiology"])
def test_refusals(name: str, hlo: Hlo, clean_environment: Path) -> None:
    """A name that can not be used is refused by that name, with a remedy and status 1, and nothing is written."""
    done = hlo("plugins", "new", name)
    assert (done.status, done.out) == (1, "")
    assert f"`{name}`" in done.err
    assert "remedy:" in done.err
    assert list(clean_environment.rglob("*")) == []
