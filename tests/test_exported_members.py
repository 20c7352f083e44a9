"""The face of the package."""

from __future__ import annotations

import hlo


def test_all_is_sorted() -> None:
    """`hlo.__all__` is in alphabetical order, so that a diff of it is readable."""
    assert hlo.__all__ == sorted(hlo.__all__)


def test_all_is_exact() -> None:
    """`hlo.__all__` names what the package defines for others: no more, and no less."""
    from types import ModuleType

    public = {
        name for name, value in vars(hlo).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public == set(hlo.__all__)


def test_every_public_name_says_what_it_is() -> None:
    """Everything that plugin authors import has a docstring."""
    assert [name for name in hlo.__all__ if not getattr(hlo, name).__doc__] == []
