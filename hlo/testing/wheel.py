"""Unpacks a wheel that nobody has looked at yet: nothing lands outside its folder, and nothing fills the disk."""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from collections.abc import Sequence
from importlib.metadata import PathDistribution
from pathlib import Path, PurePosixPath

from hlo.errors import PluginError

_MOST_BYTES = 8 << 30  # of what a wheel unpacks to
# What zipfile raises for archives that are broken, encrypted, or packed in a way that it does not know.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, NotImplementedError)


def unpack(file: Path, folder: Path) -> PathDistribution:
    """Unpack a wheel into a folder, and return its metadata. Raises `PluginError`."""
    try:
        with zipfile.ZipFile(file) as archive:
            _check_members(file, archive.infolist())
            archive.extractall(folder)  # every member was checked
    except _DAMAGED as error:
        raise PluginError(f"`{file}` can not be unpacked: {error}.", remedy="Build the wheel again.") from error
    infos = sorted(folder.glob("*.dist-info"))
    if len(infos) != 1 or not (infos[0] / "METADATA").is_file():
        raise PluginError(
            f"`{file}` has {len(infos)} `.dist-info` folders; one, with a METADATA file, was wanted.",
            remedy="Build the wheel again, with a current build backend.",
        )
    return PathDistribution(infos[0])


def _check_members(file: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse a wheel whose files would land elsewhere, or fill the disk."""
    for member in members:
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in member.filename:
            raise PluginError(
                f"`{file}` holds `{member.filename}`, which leads out of the folder that it is unpacked to.",
                remedy="Do not install it; a build backend makes no such file.",
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise PluginError(
                f"`{file}` holds the symbolic link `{member.filename}`; wheels hold plain files only.",
                remedy="Build it again, with the file itself in the place of the link.",
            )
    if sum(member.file_size for member in members) > _MOST_BYTES:
        raise PluginError(
            f"`{file}` would unpack to more than {_MOST_BYTES >> 30} GiB.", remedy="Keep adapters on a model hub."
        )
