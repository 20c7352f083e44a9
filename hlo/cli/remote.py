"""A running HLO server, as commands see it: its answers, and its problems as HLO's errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from hlo.errors import HLOError


class Server:
    """A connection to a server."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send `body`; return what came back, decoded. Raises `HLOError` with the server's problem."""
        response = self._client.post(path, json=body)
        _raise_problem(response)
        try:
            return response.json()
        except ValueError as error:
            raise HLOError(
                f"{response.url} does not answer like HLO.", remedy="Check --url, or upgrade the server."
            ) from error

    @contextmanager
    def post_stream(self, path: str, body: dict[str, Any]) -> Iterator[Iterator[str]]:
        """Send `body`; yield the lines of the answer as they come. Raises `HLOError` with the server's problem."""
        with self._client.stream("POST", path, json=body) as response:
            if response.is_error:
                response.read()
            _raise_problem(response)
            yield response.iter_lines()


@contextmanager
def connection(url: str) -> Iterator[Server]:
    """Connect to the server at `url`, with the key that HLO_API_KEY holds. Raises `HLOError` when nobody answers."""
    key = os.environ.get("HLO_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(600, connect=5)) as client:
            yield Server(client)
    except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise HLOError(f"No server answers at {url}: {error}.", remedy="Start one with `hlo serve`.") from error


def _raise_problem(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        found = response.json()
        raise HLOError(found["detail"], remedy=found.get("remedy", ""))
    except (ValueError, KeyError, TypeError) as error:
        raise HLOError(f"The server answered {response.status_code}.", remedy="See its log.") from error
