"""Ports for servers that must be told theirs before they start."""

from __future__ import annotations

import random
import socket

_CHOICE = range(20_000, 32_000)
"""Below those that Linux gives to connections and to who asks for any: one of those may be gone before it is used."""


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    while True:
        port = random.SystemRandom().choice(_CHOICE)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
