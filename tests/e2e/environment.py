"""A clean environment: HLO and plugins as wheels, and nothing of this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from msgspec import Struct

ROOT = Path(__file__).parents[2]


class Environment(Struct, frozen=True):
    """An environment in a folder of its own."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def variables(self) -> dict[str, str]:
        """The process's environment with this environment's commands first, and no setting of HLO's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HLO_", "PYTHON"))}
        return kept | {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(self.folder),
        }

    def install(self, *wheels: Path) -> None:
        """Install wheels, replacing other versions."""
        self._pip("install", "--no-deps", "--no-index", "--force-reinstall", *map(str, wheels))

    def uninstall(self, *names: str) -> None:
        """Uninstall packages."""
        self._pip("uninstall", "--yes", *names)

    def _pip(self, *arguments: str) -> None:
        run(sys.executable, "-m", "pip", "--python", str(self.python), "--quiet", *arguments)


def create(folder: Path) -> Environment:
    """Make an environment with everything that this one has but HLO and its plugins.

    The libraries are links to this environment's: they are gigabytes, and installing them again would show nothing.
    """
    venv.create(folder, symlinks=True)
    site = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(("hlo", "_hlo", "_editable_impl_hlo", "__pycache__", "__editable__")):
            (site / path.name).symlink_to(path)
    return Environment(folder)


def build(source: Path, wheels: Path) -> Path:
    """Build a package's wheel."""
    before = set(wheels.glob("*.whl"))
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"),
        *("--wheel-dir", str(wheels), str(source)),
    )
    (made,) = set(wheels.glob("*.whl")) - before
    return made


def run(*command: str, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    """Run a command, which must succeed; what it printed."""
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout
