"""Who may do what over HTTP: without keys, with the right one, with a wrong one, and with too many requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from hlo import keys
from hlo.errors import TooManyRequests
from hlo.keys import Key, Role
from hlo.service.access import Use, is_loopback
from hlo.settings import Settings
from hlo.testing import EchoEngine

if TYPE_CHECKING:
    from tests.conftest import MakeParts
    from tests.service.conftest import Serve

RELOAD = "/admin/specialties/reload"
ASK = [
    ("POST", "/ask", {"question": "heart"}),
    ("POST", "/route", {"question": "heart"}),
    ("POST", "/generate", {"prompt": "x"}),
    ("GET", "/specialties", None),
    ("GET", "/console/about", None),
    ("GET", "/metrics", None),
]
ADMIN = [("POST", "/switch-adapter", {"adapter_name": "oncology"}), ("POST", RELOAD, None)]
OPEN = ["/healthz", "/readyz", "/schema", "/schema/openapi.json", "/", "/console/main.js"]

Make = Callable[..., str]


@pytest.fixture
def make(clean_environment: Path) -> Make:
    """Make keys, in the file that servers look for by default."""

    def one(name: str, role: Role = "ask", rate: int | None = None, concurrent: int | None = None) -> str:
        kept, secret = keys.make(name, role, rate, concurrent)
        keys.add(clean_environment / "hlo.keys", kept)
        return secret

    return one


def bearing(key: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def reloads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Where reloads are counted, and not done."""
    from hlo.reload import Reloaded
    from hlo.service.state import Service

    seen: list[object] = []

    async def reload(service: Service, caller: object) -> Reloaded:
        seen.append(caller)
        return Reloaded((), (), (), (), ())

    monkeypatch.setattr(Service, "reload", reload)
    return seen


@pytest.mark.parametrize(("method", "path", "body"), ASK + ADMIN)
def test_without_any_key_all_is_open(method: str, path: str, body: Any, serve: Serve, reloads: list[object]) -> None:
    """A server without keys wants none, whatever is sent."""
    client = serve()
    assert client.request(method, path, json=body).status_code == 200
    assert client.request(method, path, json=body, headers=bearing("hlo_x_y")).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "http://evil.example:8000", "null", "http://[", "x"])
def test_a_server_without_keys_serves_no_strangers_page(origin: str, serve: Serve, reloads: list[object]) -> None:
    """A web page of another origin, in a browser on this machine, gets nothing from a server without keys."""
    client = serve()
    for method, path, body in ASK + ADMIN:
        response = client.request(method, path, json=body, headers={"origin": origin})
        assert (response.status_code, response.json()["type"]) == (403, "urn:hlo:problem:forbidden")
    assert not reloads


@pytest.mark.parametrize("origin", ["http://localhost:8000", "http://127.0.0.1:1", "http://[::1]:8000"])
def test_a_page_of_its_own_is_served(origin: str, serve: Serve) -> None:
    """A page that this machine serves may ask."""
    assert serve().post("/ask", json={"question": "heart"}, headers={"origin": origin}).status_code == 200


@pytest.mark.parametrize(("method", "path", "body"), ASK + ADMIN)
@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer ", "Bearer hlo_x_y", "KEY", "Basic KEY", "Bearer KEYx", "Bearer é", "KEY KEY"]
)
def test_a_wrong_key_is_refused(
    given: str | None, method: str, path: str, body: Any, serve: Serve, make: Make, reloads: list[object]
) -> None:
    """Without a key, with a wrong one or in another scheme the answer is 401, and says how to send one."""
    key = make("ward 7", "admin")
    client = serve()
    header = {} if given is None else {b"authorization": given.replace("KEY", key).encode("latin-1")}
    response = client.request(method, path, json=body, headers=header)
    assert (response.status_code, response.json()["type"]) == (401, "urn:hlo:problem:unauthorized")
    error = "" if given is None else ', error="invalid_token"'
    assert response.headers["www-authenticate"] == f'Bearer realm="hlo"{error}'
    assert "hlo keys new" in response.json()["remedy"]
    assert key not in response.text
    assert not reloads


@pytest.mark.parametrize("path", OPEN)
def test_what_is_open_wants_no_key(path: str, serve: Serve, make: Make) -> None:
    """Whether it lives, whether it is ready and the schema are told without a key, and with any."""
    make("ward 7")
    client = serve()
    assert client.get(path).status_code == 200
    assert client.get(path, headers=bearing("hlo_x_y")).status_code == 200


def test_readiness_tells_strangers_no_more(serve: Serve, make: Make) -> None:
    """`/readyz` tells without a key that the server is ready, and with one what is running."""
    key = make("ward 7")
    client = serve()
    assert client.get("/readyz").json()["engine"] is None
    assert client.get("/readyz").json()["specialties"] == []
    assert client.get("/readyz", headers=bearing(key)).json()["engine"]["engine"] == "echo"


@pytest.mark.parametrize(("method", "path", "body"), ASK)
@pytest.mark.parametrize("role", ["ask", "admin"])
def test_any_key_may_ask(role: Role, method: str, path: str, body: Any, serve: Serve, make: Make) -> None:
    """A key of either role asks; the scheme's name is read in any case."""
    key = make("ward 7", role)
    client = serve()
    assert client.request(method, path, json=body, headers=bearing(key)).status_code == 200
    assert client.request(method, path, json=body, headers={"Authorization": f"bearer {key}"}).status_code == 200


@pytest.mark.parametrize(("method", "path", "body"), ADMIN)
def test_what_concerns_all_wants_an_admin(
    method: str, path: str, body: Any, serve: Serve, make: Make, reloads: list[object]
) -> None:
    """What changes the server for everybody wants the role `admin`: 403 says so."""
    asks, administers = make("ward 7"), make("it", "admin")
    client = serve()
    refused = client.request(method, path, json=body, headers=bearing(asks))
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:hlo:problem:forbidden")
    assert 'error="insufficient_scope", scope="admin"' in refused.headers["www-authenticate"]
    assert client.request(method, path, json=body, headers=bearing(administers)).status_code == 200


def test_a_revoked_key_stops_working(serve: Serve, make: Make, clean_environment: Path) -> None:
    """A running server heeds what `hlo keys` changes: the next request with a revoked key is refused."""
    gone, stays = make("ward 7"), make("ward 8")
    client = serve()
    assert client.get("/specialties", headers=bearing(gone)).status_code == 200
    keys.revoke(clean_environment / "hlo.keys", "ward 7")
    assert client.get("/specialties", headers=bearing(gone)).status_code == 401
    assert client.get("/specialties", headers=bearing(stays)).status_code == 200
    assert client.get("/specialties", headers=bearing(make("ward 9"))).status_code == 200


def test_a_rate_is_kept_to(serve: Serve, make: Make) -> None:
    """Beyond its requests a minute a key gets 429 and when to come back; other keys are not touched."""
    slow, other = make("slow", rate=3), make("other")
    client = serve()
    statuses = [client.get("/specialties", headers=bearing(slow)).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    refused = client.get("/specialties", headers=bearing(slow))
    assert refused.json()["type"] == "urn:hlo:problem:too-many-requests"
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert refused.json()["retry_after"] == int(refused.headers["retry-after"])
    assert client.get("/specialties", headers=bearing(other)).status_code == 200
    text = client.get("/metrics", headers=bearing(other)).text
    number = slow.split("_")[1]
    assert f'hlo_key_requests_total{{key="{number}",outcome="served"}} 3.0' in text
    assert f'hlo_key_requests_total{{key="{number}",outcome="limited"}} 2.0' in text


def bucket(rate: int | None = None, concurrent: int | None = None) -> Key:
    """A key with these limits."""
    return keys.make("x", "ask", rate, concurrent)[0]


def taken(use: Use, key: Key, now: float) -> bool:
    """Whether a request is let through at that time; it ends at once."""
    try:
        use.begin(key, now)
    except TooManyRequests:
        return False
    use.end()
    return True


@pytest.mark.parametrize("start", [0.0, 1e9])
@pytest.mark.parametrize("rate", [1, 7, 60, 6000])
def test_a_rate_is_that_on_average(rate: int, start: float) -> None:
    """A minute's worth may come at once; then as many a minute as the key may, and no more, however many come."""
    use, key = Use(), bucket(rate=rate)
    assert sum(taken(use, key, start) for _ in range(rate + 5)) == rate
    each = 60 / rate
    assert not taken(use, key, start + each * 0.9)
    assert taken(use, key, start + each * 1.01)
    later = [start + 100 + number * each / 4 for number in range(4 * 3 * rate)]  # four times as many, for three minutes
    assert sum(taken(use, key, now) for now in later) in range(4 * rate - 1, 4 * rate + 1)
    assert sum(taken(use, key, start + 10_000) for _ in range(rate + 5)) == rate


def test_retry_after_is_right() -> None:
    """After as many seconds as the refusal says, a request is let through."""
    use, key, now = Use(), bucket(rate=7), 5.0
    while taken(use, key, now):
        pass
    with pytest.raises(TooManyRequests) as caught:
        use.begin(key, now)
    assert taken(use, key, now + caught.value.retry_after_s)


def test_as_many_at_once_as_a_key_may(serve: Serve, make: Make, make_parts: MakeParts) -> None:
    """A key with answers under way, as many as it may have, gets 429; once one has ended, or was left, it may again."""
    one = make("one", concurrent=1)
    parts = make_parts(engine=EchoEngine(pause=0.01))
    client = serve(parts)
    answers: list[int] = []

    def ask(client: TestClient[Litestar]) -> None:
        body = {"question": "heart pulse", "stream": True}
        answers.append(client.post("/ask", json=body, headers=bearing(one)).status_code)

    thread = threading.Thread(target=ask, args=(client,))
    thread.start()
    while not parts.engine.running:
        pass
    refused = client.post("/ask", json={"question": "heart"}, headers=bearing(one))
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert client.post("/ask", json={"question": "heart"}, headers=bearing(make("other"))).status_code == 200
    thread.join()
    assert answers == [200]
    assert client.post("/ask", json={"nonsense": 1}, headers=bearing(one)).status_code == 400
    assert client.post("/ask", json={"question": "heart"}, headers=bearing(one)).status_code == 200


def test_no_key_is_told(serve: Serve, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a key nor its secret, right or wrong, is in a log at any level, an error, a metric or the schema."""
    caplog.set_level("DEBUG")
    key, other = make("ward 7", rate=2), make("it", "admin")
    client, wrong = serve(), f"{key[:-4]}oops"
    told = [
        client.request(method, path, json=body, headers=bearing(one)).text
        for one in (key, wrong)
        for method, path, body in [*ASK, *ADMIN]
    ]
    told += [client.get(path, headers=bearing(other)).text for path in ("/metrics", "/schema/openapi.json", "/readyz")]
    told += [client.post("/ask", json={"question": "x", other: other}, headers=bearing(other)).text]
    secrets = [one.split("_", 2)[2] for one in (key, wrong)]
    assert all(secret not in text for secret in secrets for text in [*told, caplog.text])


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],  # noqa: S104
)
def test_what_only_this_machine_reaches(host: str, here: bool) -> None:
    """Loopback addresses are known, of both families."""
    assert is_loopback(host) is here
    assert not is_loopback("hospital.example")


@pytest.mark.parametrize(
    ("host", "bound"),
    [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("hospital.example", "127.0.0.1")],  # noqa: S104
)
def test_a_server_without_keys_listens_here_alone(host: str, bound: str, caplog: pytest.LogCaptureFixture) -> None:
    """Without a key the server listens on loopback wherever it was told to, and says so."""
    from hlo.service.server import address

    assert address(Settings(host=host), closed=True) == host
    assert not caplog.text
    assert address(Settings(host=host), closed=False) == bound
    assert f"listening on {bound} alone, not on {host}" in caplog.text
    assert "hlo keys new" in caplog.text
