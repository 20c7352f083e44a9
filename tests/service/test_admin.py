"""What a reload does to the service; who may ask for one: test_access."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from hlo import assemble, plugins
from hlo.catalog import Catalog
from hlo.errors import HubError
from hlo.plugins import Hooks

if TYPE_CHECKING:
    from tests.conftest import MakeParts, Until
    from tests.service.conftest import Serve

PATH = "/admin/specialties/reload"


@pytest.fixture
def installed(make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a reload finds: the fakes' specialties, until a test changes them."""
    world = {"entries": dict(make_parts().pipeline.catalog.entries), "error": None}

    def collect(*_: Any, fresh: bool, **__: Any) -> tuple[Catalog, Hooks]:
        if isinstance(world["error"], Exception):
            raise world["error"]
        return Catalog(dict(world["entries"] or {}), ()), Hooks()

    monkeypatch.setattr(assemble, "collect", collect)
    monkeypatch.setattr(plugins, "installed", lambda: ())
    return world


def test_reload(serve: Serve, installed: dict[str, Any]) -> None:
    """`POST /admin/specialties/reload` tells what it did, and from then on the rest is served."""
    client = serve()
    del installed["entries"]["oncology"]
    done = client.post(PATH)
    assert done.status_code == 200
    assert done.json() == {"added": [], "changed": [], "removed": ["oncology"], "kept": [], "refused": []}
    assert [one["name"] for one in client.get("/specialties").json()["specialties"]] == ["cardiology", "neurology"]
    assert client.get("/readyz").json()["specialties"] == ["cardiology", "neurology"]
    gone = client.post("/ask", json={"question": "x", "specialty": "oncology"})
    assert gone.json()["type"] == "urn:hlo:problem:unknown-specialty"
    assert 'hlo_specialties{state="served"} 2.0' in client.get("/metrics").text


def test_a_default_adapter_that_is_removed_gives_way(serve: Serve, installed: dict[str, Any]) -> None:
    """When the default adapter of `/generate` is removed, the base model is the default again."""
    client = serve()
    client.post("/switch-adapter", json={"adapter_name": "oncology"})
    del installed["entries"]["oncology"]
    client.post(PATH)
    assert client.post("/generate", json={"prompt": "x"}).json()["adapter"] is None


def test_a_failed_reload_is_a_problem(serve: Serve, installed: dict[str, Any]) -> None:
    """A reload that fails tells why, and everything is served as before."""
    client = serve()
    installed["error"] = HubError("The hub can not be reached.", remedy="Connect.")
    response = client.post(PATH)
    assert (response.status_code, response.json()["detail"]) == (503, "The hub can not be reached.")
    assert len(client.get("/specialties").json()["specialties"]) == 3


def test_a_server_that_is_not_ready_reloads_nothing(serve: Serve) -> None:
    """Before the server is ready, a reload is refused for the moment."""

    async def never(*_: Any) -> Any:
        import asyncio

        await asyncio.Event().wait()

    client = serve(start=never, wait=False)
    response = client.post(PATH)
    assert (response.status_code, response.json()["type"]) == (503, "urn:hlo:problem:not-ready")


async def test_a_signal_reloads_in_the_background(
    make_parts: MakeParts, installed: dict[str, Any], until: Until, clean_environment: object
) -> None:
    """What SIGHUP starts reloads in the background, and an error of it goes to the log, not up."""
    from hlo.service.app import create_app
    from hlo.service.state import Service
    from hlo.settings import Settings

    parts = make_parts()

    async def start(settings: Settings, *_: Any) -> Any:
        return parts.runtime(settings)

    service = Service(Settings(), start)
    async with service.lifespan(create_app(service)):
        await until(lambda: service.stage == "ready")
        del installed["entries"]["oncology"]
        service.reload_soon()
        await until(lambda: len(parts.pipeline.catalog.entries) == 2)
        installed["error"] = HubError("The hub can not be reached.")
        service.reload_soon()
        await until(lambda: 'hlo_reloads_total{outcome="failed"} 1.0' in parts.metrics.render().decode())
        assert len(parts.pipeline.catalog.entries) == 2
