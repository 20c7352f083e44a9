"""The command `hlo`. Commands import what they need when they run, so that `hlo --help` answers at once."""

from hlo.cli.main import main

__all__ = ["main"]
