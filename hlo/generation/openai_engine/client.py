"""Speaks to one server over HTTP, and tells what goes wrong there as `ServerFailed`."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx
import msgspec

from hlo.contracts import Servers
from hlo.generation.openai_engine import wire
from hlo.generation.openai_engine.wire import ServerFailed

T = TypeVar("T")

_SETTLE_S = 5.0  # for what a server answers at once
_KEPT_S = 2.0  # an idle connection; vLLM closes it after five seconds, perhaps while a request is on its way


class Client:
    """HTTP to the server at `url`."""

    def __init__(self, url: str, servers: Servers) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {servers.key.get_secret_value()}"} if servers.key else {},
            timeout=httpx.Timeout(servers.timeout_s, connect=_SETTLE_S),
            limits=httpx.Limits(keepalive_expiry=_KEPT_S),
            verify=ssl.create_default_context(),
            trust_env=False,  # no prompt goes through a proxy that happens to be in the environment
        )

    async def get(self, path: str) -> tuple[int, bytes]:
        """A response's status and body."""
        async with _telling():
            response = await self._http.get(path, timeout=_SETTLE_S)
        return response.status_code, response.content

    async def read(self, path: str, kind: type[T]) -> T:
        """A response's body, decoded, of a path that every server of vLLM's has."""
        status, body = await self.get(path)
        if status == 404:
            raise ServerFailed(f"it has no {path}, and so is no server of vLLM's", refused=True)
        if status != 200:
            error = wire.refusal(status, wire.Fault())
            raise error if isinstance(error, ServerFailed) else ServerFailed(f"{path} has the status {status}")
        return _decoded(body, kind)

    async def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """A response's status and body."""
        async with _telling():
            response = await self._http.post(path, json=body)
        return response.status_code, response.content

    async def stream(
        self, name: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> AsyncGenerator[wire.Choice, None]:
        """The pieces of a completion by `name`, to the one that has a reason to be the last.

        Closing the iterator closes the connection. Raises `ServerFailed`, `AdapterUnknown` or `InvalidRequest`.
        """
        request = self._http.build_request("POST", "/v1/completions", json={"model": name, **body}, headers=headers)
        async with _telling():
            response = await self._http.send(request, stream=True)
            try:
                if response.status_code != 200:
                    raise wire.refusal(response.status_code, wire.fault(await response.aread()))
                async for data in wire.events(response.aiter_bytes()):
                    if data == b"[DONE]":
                        break
                    said = _decoded(data, wire.Completion)
                    if said.error is not None:
                        raise ServerFailed("its engine failed")
                    _check_author(said.model, name)
                    for choice in said.choices:
                        if choice.token_ids is None:
                            raise ServerFailed("it returns no token ids", refused=True)
                        if choice.finish_reason not in (None, "stop", "length"):  # it is being stopped
                            raise ServerFailed(f"it ended the answer with `{choice.finish_reason}`")
                        yield choice
                        if choice.finish_reason is not None:
                            return
            finally:
                await response.aclose()
        raise ServerFailed("it broke off the answer")

    async def score(
        self, name: str, token_ids: Sequence[int], headers: Mapping[str, str] | None = None
    ) -> tuple[float, ...]:
        """Natural-log probabilities of the tokens after the first. Raises as `stream` does."""
        body = {"model": name, "prompt": token_ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        async with _telling():
            response = await self._http.post("/v1/completions", json=body, headers=headers)
        if response.status_code != 200:
            raise wire.refusal(response.status_code, wire.fault(response.content))
        said = _decoded(response.content, wire.Completion)
        _check_author(said.model, name)
        rows = (said.choices[0].prompt_logprobs if said.choices else None) or ()
        found = [row.get(str(token)) if row else None for token, row in zip(token_ids, rows, strict=False)]
        if len(rows) != len(token_ids) or None in found[1:]:
            raise ServerFailed("it returns no log-probabilities of a prompt", refused=True)
        return tuple(one.logprob for one in found[1:] if one is not None)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()


@asynccontextmanager
async def _telling() -> AsyncIterator[None]:
    """Tell what httpx raises as `ServerFailed`."""
    try:
        yield
    except httpx.ConnectError:
        raise ServerFailed("it can not be reached") from None
    except httpx.TimeoutException:
        raise ServerFailed("it does not answer in time") from None
    except httpx.RequestError as error:
        raise ServerFailed(f"the connection broke ({type(error).__name__})") from None


def _check_author(said: str, wanted: str) -> None:
    """Some servers and gateways answer with the base model where they do not know the adapter."""
    if said != wanted:
        raise ServerFailed(f"it was asked for `{wanted}` and answers as `{said}`", refused=True)


def _decoded(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError:
        raise ServerFailed("what it says is not what vLLM says", refused=True) from None
