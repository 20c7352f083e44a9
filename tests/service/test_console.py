"""The console's files: what they are served with, and what they may not hold."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from litestar import Litestar
from litestar.testing import TestClient

import hlo
from hlo.errors import HLOError
from hlo.service import console
from hlo.settings import load_settings
from hlo.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MakeParts
    from tests.service.conftest import Serve

Client = TestClient[Litestar]
TEXTS = {name: file.content.decode() for name, file in console.files().items()}
SCRIPTS = sorted(name for name in TEXTS if name.endswith(".js"))


def test_the_page_is_served(client: Client) -> None:
    """`/` is the page, and each file that it is made of has its type, and may be neither framed nor sniffed."""
    for path, name in [("/", "index.html"), *((f"/console/{name}", name) for name in TEXTS)]:
        response = client.get(path)
        assert response.status_code == 200, path
        assert response.text == TEXTS[name]
        kind = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
        assert response.headers["content-type"].split(";")[0] == kind[name.rpartition(".")[2]]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        policy = dict(one.split(" ", 1) for one in response.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
        assert policy["require-trusted-types-for"] == "'script'"
        assert policy["trusted-types"] == "'none'"


def test_a_file_that_is_known_is_not_sent_again(client: Client) -> None:
    """A browser that has a file as it is now is told so, whatever else it has; one with another version gets it."""
    etag = client.get("/console/base.css").headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        response = client.get("/console/base.css", headers={"if-none-match": known})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)
        assert response.headers["cache-control"] == "no-cache"
    assert client.get("/console/base.css", headers={"if-none-match": '"other"'}).text == TEXTS["base.css"]
    assert len({file.etag for file in console.files().values()}) == len(TEXTS)


@pytest.mark.parametrize(
    "name", ["none.js", "__init__.py", "..%2f__init__.py", "%2e%2e%2fapp.py", "%00", ".", "x" * 5000]
)
def test_only_its_files_are_served(name: str, client: Client) -> None:
    """Any other name, and any way out of the folder, is not found."""
    assert client.get(f"/console/{name}").status_code == 404


def test_it_knows_what_it_shows_of_the_settings(serve: Serve, make_parts: MakeParts) -> None:
    """`/console/about` tells the version, what is done with questions, and where traces are seen."""
    client = serve(out_of_scope="refuse", max_question_chars=9, trace_url="https://jaeger/trace/{trace_id}")
    assert client.get("/console/about").json() == {
        "version": hlo.__version__,
        "quantization": "none",
        "ambiguous": "first",
        "out_of_scope": "refuse",
        "max_question_chars": 9,
        "traced": False,
        "trace_url": "https://jaeger/trace/{trace_id}",
    }


def test_looking_at_the_page_is_no_trace(serve: Serve, make_parts: MakeParts, traced: Tracing, exporter: Any) -> None:
    """Where answers leave traces, `/console/about` says so; the page and its files leave none."""
    client = serve(make_parts(tracing=traced))
    assert client.get("/console/about").json()["traced"] is True
    for path in ("/", "/console/base.css", "/console/about"):
        assert client.get(path).status_code == 200
    client.post("/ask", json={"question": "heart"})
    assert {span.name for span in exporter.get_finished_spans() if span.parent is None} == {"POST /ask"}


def test_the_page_holds_no_code() -> None:
    """No script, style or handler stands in the page, where the policy would not run it; what it names is there."""
    page = TEXTS["index.html"]
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\son\w+=|javascript:", page) == []
    named = re.findall(r'(?:href|src)="(/[^"]*)"', page)
    assert named
    assert {path.removeprefix("/console/") for path in named} <= set(TEXTS)
    assert sorted(re.findall(r'href="#(?:ask|specialties|server|main)"', page))


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_nothing_comes_from_elsewhere(name: str) -> None:
    """No file names another origin but as a namespace, or as an example for people."""
    found = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", TEXTS[name])) - {"http://www.w3.org"}
    assert found == set()
    assert "@import" not in TEXTS[name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_nothing_is_read_as_html(name: str) -> None:
    """No script makes elements out of text, or code out of a string; none is longer than one can look through."""
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|createContextual"
    assert re.findall(sinks, TEXTS[name]) == []
    assert len(TEXTS[name].splitlines()) < 350


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_import_what_there_is(name: str) -> None:
    """Each name that a script imports is exported by the file that it names."""
    for names, source in re.findall(r'import \{([^}]+)\} from "\./([\w.]+)"', TEXTS[name]):
        exported = set(re.findall(r"export (?:async )?(?:function\*?|const|class) (\w+)", TEXTS[source]))
        assert {one.strip() for one in names.split(",")} <= exported


def test_only_the_key_and_the_theme_are_kept() -> None:
    """Of all scripts, one keeps the key for the tab, and two the choice of a theme; nothing else is stored anywhere."""
    stores = {
        name: re.findall(r"(?:session|local)Storage\.\w+|document\.cookie|indexedDB|caches\b", TEXTS[name])
        for name in SCRIPTS
    }
    assert {name: set(found) for name, found in stores.items() if found} == {
        "api.js": {"sessionStorage.getItem", "sessionStorage.setItem", "sessionStorage.removeItem"},
        "main.js": {"localStorage.setItem"},
        "theme.js": {"localStorage.getItem"},
    }


def test_a_card_is_served_as_text(client: Client, clean_environment: Path) -> None:
    """`/specialties/NAME/card` is the README.md that came with the adapter, which no browser reads as anything else."""
    folder = clean_environment / "cardiology"  # where the fakes' adapter says that it is
    folder.mkdir()
    (folder / "README.md").write_text("# Hearts <script>\n", encoding="utf-8")
    response = client.get("/specialties/cardiology/card")
    assert (response.status_code, response.text) == (200, "# Hearts <script>\n")
    assert response.headers["content-type"] == "text/markdown; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/specialties/neurology/card", "not-found"), ("/specialties/dentistry/card", "unknown-specialty")],
)
def test_what_has_no_card_is_told(path: str, kind: str, client: Client) -> None:
    """An adapter without a card, and a specialty that is not served, are problems."""
    response = client.get(path)
    assert (response.status_code, response.json()["type"]) == (404, f"urn:hlo:problem:{kind}")


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)//{trace_id}", "http://jaeger/trace/", "jaeger/{trace_id}", "http://a b/{trace_id}"]
)
def test_an_address_without_a_trace_is_refused(url: str, clean_environment: object) -> None:
    """`HLO_TRACE_URL` is an http address with the trace's place in it."""
    with pytest.raises(HLOError, match="trace_url"):
        load_settings(trace_url=url)
