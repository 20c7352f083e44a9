"""Files that commands write for people: looked at before the work, and written with a clear error."""

from __future__ import annotations

import os
from pathlib import Path

from hlo.errors import SettingsError


def check_writable(file: Path) -> None:
    """Raise `SettingsError` before minutes are spent on what could not be written down."""
    folder = file.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise SettingsError(f"`{file}` can not be written.", remedy="Name a file in a folder that is there.")


def write(file: Path, page: str) -> None:
    """Write a page. Raises `SettingsError`."""
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"`{file}` can not be written: {error.strerror}.", remedy="Name another file.") from error
