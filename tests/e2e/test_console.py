"""The console in a real Chromium, against a real server."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from msgspec import Struct
from playwright.sync_api import Browser, Route, expect

from tests.e2e.browser import ANSWER_MS, Visit, chromium, visiting
from tests.e2e.reference import ADAPTERS
from tests.e2e.server import Server, spawn, stop, wait_listening, wait_ready
from tests.e2e.test_answers import ASKED
from tests.otlp import Receiver, receiving

CHEST = ASKED["cardiology"]
FACE = "My face droops on one side and I can't lift my arm since this morning"
CANARY = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
TRACE_URL = "http://jaeger.example/trace/{trace_id}"
TOKENS = 64  # enough for some sentences
VIEWS = ("", "#specialties", "#specialties/cardiology", "#server")
# What a page looks like from the inside, each time that its last answer changes.
WATCH = """() => {
  window.seen = [];
  new MutationObserver(() => {
    const turn = document.querySelector(".turn:last-child");
    window.seen.push([turn?.querySelector(".text")?.textContent.length ?? 0, !!turn?.querySelector(".evidence .who")]);
  }).observe(document.getElementById("conversation"), { subtree: true, childList: true, characterData: true });
}"""
FOCUSED = """() => {
  const one = document.activeElement, style = getComputedStyle(one), field = one.closest(".field");
  const outline = one.id === "question" ? getComputedStyle(field).outlineWidth : style.outlineWidth;
  return { id: one.id, text: one.textContent.trim().slice(0, 40), tag: one.tagName, ring: parseFloat(outline) };
}"""


class Started(Struct, frozen=True):
    """The server, and what the console said while it started."""

    server: Server
    banner: str
    state: str
    problem: str


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium; each visit has a profile of its own in it."""
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Where the server's spans go."""
    with receiving("grpc") as started:
        yield started


@pytest.fixture(scope="module")
def started(browser: Browser, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """A server without one adapter and one plugin, and with a card that holds HTML; it is visited while it starts."""
    folder = tmp_path_factory.mktemp("console")
    adapters = folder / "adapters"
    shutil.copytree(ADAPTERS, adapters, ignore=shutil.ignore_patterns("recipe", "hematology"))
    card = adapters / "cardiology" / "README.md"
    card.write_text(f"{card.read_text(encoding='utf-8')}\n## {CANARY}\n\n[here](javascript:alert(1)) {CANARY}\n")
    process, log = spawn(
        folder,
        HLO_ENGINE="transformers",
        ADAPTER_PATH=str(adapters),
        HLO_PLUGINS="-geriatrics",
        HLO_TRACE_URL=TRACE_URL,
        **receiver.environment,
    )
    try:
        url = wait_listening(process, log)
        with visiting(browser, url, TOKENS) as visit:
            page = visit.page
            expect(page.locator("#banner")).to_be_visible()
            banner, state = page.locator("#banner").inner_text(), page.locator("#state").inner_text()
            visit.ask(CHEST)
            problem = page.locator(".problem").inner_text()
            server = Server(wait_ready(process, log), process, log)
            expect(page.locator("#banner")).to_be_hidden(timeout=30_000)
            expect(page.locator("#state")).to_have_text("hlo-demo-10m")
            page.get_by_role("button", name="Ask again").click()
            expect(page.locator(".evidence .who")).to_have_text("Cardiology", timeout=ANSWER_MS)
        yield Started(server, banner, state, problem)
        stop(process, signal.SIGTERM)
        assert "Traceback" not in log.read_text(errors="replace")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def server(started: Started) -> Server:
    """The server, ready."""
    return started.server


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    """The console, opened by somebody new."""
    with visiting(browser, server.url, TOKENS) as opened:
        expect(opened.page.locator("#specialty option")).to_have_count(11)
        yield opened


def test_a_server_that_starts_is_waited_for(started: Started) -> None:
    """While the server starts the page says so, a question is told what to do, and once it is ready, it is answered."""
    assert started.banner.startswith("The server is not ready: ")
    assert started.state == "Not ready"
    assert "Not ready" in started.problem
    assert "Ask again in a few seconds." in started.problem


def test_an_answer_arrives_in_pieces(visit: Visit, server: Server) -> None:
    """The route is there before the first word, the text grows piece by piece, and all of it is what the API says."""
    page = visit.page
    page.evaluate(WATCH)
    visit.ask(CHEST)
    told = server.post("/ask", {"question": CHEST, "max_tokens": TOKENS}).json()
    seen = page.evaluate("window.seen")
    lengths = [length for length, _ in seen]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 10
    assert all(routed for length, routed in seen if length)
    assert page.locator(".text").inner_text() == told["answer"].strip()
    assert page.locator(".evidence .who").inner_text() == "Cardiology"
    assert page.locator(".evidence .chip").inner_text() == "Routed"
    rows = page.locator(".bars li:visible").all_inner_texts()
    assert len(rows) == 5  # the four nearest, and none of them
    best = told["route"]["scores"][0]
    assert page.locator(".bars .name").first.text_content() == "Cardiology (chosen)"
    assert f"{best['probability'] * 100:.0f}\xa0%" in rows[0]
    assert f"{best['score']:.3f}" in rows[0]
    assert rows[4].startswith("None of them")
    widths = page.locator(".bars .fill").evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
    track = page.locator(".bars .track").first.evaluate("one => one.getBoundingClientRect().width")
    assert widths[0] / track == pytest.approx(best["probability"], abs=0.01)
    assert widths[0] == max(widths)
    nearest = len(told["route"]["scores"])
    page.get_by_role("button", name=f"{nearest - 4} more").click()
    assert page.locator(".bars li:visible").count() == nearest + 1
    sources = page.locator(".provenance").inner_text()
    assert told["adapter"]["sha256"][:12] in sources
    assert f"{told['usage']['completion_tokens']} tokens" in sources


def test_who_listens_hears_it(visit: Visit) -> None:
    """A live region has the route, and then the answer a sentence at a time."""
    visit.ask(CHEST)
    heard = visit.page.locator("#heard[aria-live=polite] p").all_inner_texts()
    assert heard[0].startswith("Routed: Cardiology; Cardiology ")
    assert " ".join(heard[1:]) == " ".join(visit.page.locator(".text").inner_text().split())
    assert len(heard) > 2
    assert visit.page.locator(".text").get_attribute("aria-busy") == "false"


def test_a_notice_stands_apart(visit: Visit) -> None:
    """What a plugin put ahead of an answer is shown as its notice, and not as the model's words."""
    visit.ask(FACE)
    notice = visit.page.locator(".notice").inner_text()
    assert "stroke" in notice
    assert "Notice of the plugin redflags" in notice
    assert "emergency number" not in visit.page.locator(".text").inner_text()


def test_a_follow_up_stays(visit: Visit) -> None:
    """The next question goes along with the turns before it and stays with its specialist, until one begins anew."""
    visit.ask(CHEST)
    visit.ask("and at night?")
    page = visit.page
    assert page.locator(".evidence .who").all_inner_texts() == ["Cardiology", "Cardiology"]
    answer = page.locator(".text").first.text_content()
    assert visit.asked()[-1]["turns"] == [{"question": CHEST, "answer": answer}]
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".turn").count() == 0
    visit.ask("and at night?")
    assert visit.asked()[-1]["turns"] == []
    assert page.locator(".evidence .who").all_inner_texts() != ["Cardiology"]


def test_two_answer_side_by_side(visit: Visit, server: Server) -> None:
    """Compared, specialist and base model are asked at once, and each answer says who gave it."""
    page = visit.page
    order: list[str] = []
    page.on("request", lambda one: order.append("asked") if one.url.endswith("/ask") else None)
    page.on("requestfinished", lambda one: order.append("answered") if one.url.endswith("/ask") else None)
    page.get_by_label("Compare").check()
    visit.ask(CHEST)
    expect(page.locator(".provenance")).to_have_count(2)
    assert order[:2] == ["asked", "asked"]
    assert [one.get("specialty") for one in visit.asked()] == [None, "base"]
    assert page.locator(".answerer").all_inner_texts() == ["Cardiology", "Base model"]
    assert page.locator(".evidence").count() == 1
    texts = page.locator(".text").all_inner_texts()
    alone = {"question": CHEST, "specialty": "base", "max_tokens": TOKENS}
    assert texts[1] == server.post("/ask", alone).json()["answer"].strip()
    assert texts[0] != texts[1]
    assert "Adapter none" in " ".join(page.locator(".provenance").nth(1).inner_text().split())
    left, right = page.locator(".answer").nth(0).bounding_box(), page.locator(".answer").nth(1).bounding_box()
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]


def test_a_pinned_specialty_answers(visit: Visit) -> None:
    """From a specialty's card one goes to asking it, whatever the question is about; the trace is one click away."""
    page = visit.page
    page.get_by_role("link", name="Specialties").click()
    page.locator("#filter").fill("neuro")
    assert page.locator(".index li:visible").all_inner_texts() == ["Neurology"]
    page.get_by_role("navigation", name="Specialties").get_by_role("link", name="Neurology").click()
    page.get_by_role("button", name="Ask this one").click()
    visit.ask(CHEST)
    assert visit.asked()[-1]["specialty"] == "neurology"
    assert page.locator(".evidence").inner_text().split("\n")[:2] == ["Pinned", "Neurology"]
    trace = page.locator(".provenance a.trace")
    shown = page.locator(".provenance code").last.get_attribute("title")
    assert shown
    assert trace.get_attribute("href") == TRACE_URL.format(trace_id=shown)
    assert trace.get_attribute("rel") == "noopener noreferrer"


def test_what_is_not_served_is_told(visit: Visit) -> None:
    """A specialty that was refused stands there with reason and remedy, and a plugin that is left out by its name."""
    page = visit.page
    expect(page.locator("#refused-badge")).to_have_text("1 refused")
    page.goto(f"{visit.url}/#specialties")
    refused = page.locator(".refusals").inner_text()
    assert "hematology" in refused
    assert "was not found; looked in" in refused
    assert "Put its folder there, or set HLO_ADAPTER_PATH" in refused
    assert "geriatrics" in page.get_by_role("region", name="Left out").inner_text()
    assert page.get_by_role("region", name="Served").first.locator("tbody tr").count() == 9


def test_the_state_of_the_server_is_told(visit: Visit, server: Server) -> None:
    """The server's view has engine, quantisation and thresholds, as `/readyz` tells them."""
    page = visit.page
    page.goto(f"{visit.url}/#server")
    with server.client() as client:
        ready = client.get("/readyz").json()
    shown = page.locator("#server").inner_text()
    for wanted in (
        f"transformers {ready['engine']['version']}",
        ready["engine"]["model"],
        ready["encoder"],
        ready["encoder_fingerprint"][:12],
        f"That any specialty fits: {ready['thresholds']['min_in_scope'] * 100:.0f}\xa0%",
        f"That the best specialty fits: {ready['thresholds']['min_probability'] * 100:.0f}\xa0%",
        "1,024 tokens",
    ):
        assert wanted in shown
    quantisation = page.locator(".facts > div", has_text="Quantisation").inner_text()
    assert quantisation.split("\n")[-1] == ready["engine"]["quantization"]


def test_a_problem_is_told_with_its_remedy(visit: Visit) -> None:
    """What the server refuses is shown with reason, place and remedy; so is a server that does not answer."""
    page = visit.page
    visit.ask("x" * 4001)
    problem = page.locator(".problem").inner_text()
    assert "The question has 4001 characters; at most 4000 are allowed." in problem
    assert "Shorten it, or raise HLO_MAX_QUESTION_CHARS." in problem
    assert "400 · invalid-request · $.question" in problem
    page.context.set_offline(True)
    visit.ask(CHEST)
    assert "No answer from the server" in page.locator(".problem").last.inner_text()
    page.context.set_offline(False)
    page.get_by_role("button", name="Ask again").last.click()
    expect(page.locator(".evidence .who")).to_have_text("Cardiology", timeout=ANSWER_MS)


def test_the_keyboard_is_enough(visit: Visit, server: Server) -> None:
    """Everything is reached by Tab, in the order in which it is read, with a ring around it; Escape stops an answer."""
    page = visit.page
    page.goto(f"{visit.url}/#server")
    page.reload()  # nothing is focused
    expect(page.locator("#refused-badge")).to_be_visible()
    order = []
    for _ in range(7):
        page.keyboard.press("Tab")
        order.append(page.evaluate(FOCUSED))
    assert all(one["ring"] >= 2 for one in order), order
    assert [one["text"] for one in order[:5]] == [
        "Skip to the content",
        "HLO",
        "Ask",
        "Specialties 1 refused",
        "Server",
    ]
    assert [one["id"] for one in order[5:]] == ["state", "theme"]
    for _ in range(4):
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")  # Ask
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type(CHEST)
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
    assert [one["id"] or one["text"] for one in reached] == ["ask", "specialty", "compare", "Sampling"]
    assert all(one["ring"] >= 2 for one in reached), reached
    page.keyboard.press("Enter")
    page.locator("#temperature").fill("2")
    page.locator("#max_tokens").fill("900")
    page.locator("#question").focus()
    page.keyboard.press("Enter")
    page.locator(".text:not(:empty)").wait_for(timeout=ANSWER_MS)
    page.keyboard.press("Escape")
    expect(page.locator("#conversation .below")).to_have_text("Stopped.")
    expect(page.locator("#question")).to_be_focused()
    server.wait_for("hlo_questions_running", 0)


def test_html_is_text(visit: Visit) -> None:
    """HTML in a question and in an adapter's card is shown as it was written, and makes nothing."""
    page = visit.page
    visit.ask(CANARY)
    assert page.locator(".asked").inner_text() == CANARY
    page.goto(f"{visit.url}/#specialties/cardiology")
    card = page.locator(".card")
    card.wait_for()
    assert card.locator("h4", has_text="<img src=x").inner_text() == CANARY
    assert f"here (javascript:alert(1)) {CANARY}" in card.inner_text()
    assert card.locator("a, img, script").count() == 0
    assert card.locator("table th").all_inner_texts() == ["adapter", "perplexity"]
    assert page.evaluate("[window.pwned, document.images.length]") == [None, 0]


def test_html_of_a_hostile_server_is_text(visit: Visit) -> None:
    """Whatever strings a server puts into its answers, none becomes an element or an address that runs."""
    page = visit.page
    route = {
        "status": "ambiguous",
        "specialty": CANARY,
        "scores": [{"specialty": CANARY, "score": 0.5, "probability": 0.5}],
        "margin": 0.1,
        "out_of_scope": 0.5,
        "candidates": [CANARY],
        "pinned_by": None,
    }
    answer = {
        "route": route,
        "adapter": {"name": CANARY, "sha256": CANARY},
        "model": CANARY,
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
        "timings": {"route_ms": 1, "first_token_ms": 1, "total_ms": 1},
        "finish_reason": "stop",
        "trace_id": CANARY,
    }
    events: list[tuple[str, Mapping[str, Any]]] = [
        ("route", route),
        ("delta", {"text": CANARY, "notices": [{"plugin": CANARY, "text": CANARY}]}),
        ("delta", {"text": CANARY}),
        ("answer", answer),
        ("problem", {"title": CANARY, "detail": CANARY, "remedy": CANARY, "type": CANARY, "field": CANARY}),
    ]
    body = "".join(f"event: {name}\r\ndata: {json.dumps(data)}\r\n\r\n" for name, data in events)
    page.route("**/ask", lambda one: one.fulfill(body=body, content_type="text/event-stream"))
    page.route("**/console/about", altered(lambda told: told | {"trace_url": "javascript:alert('{trace_id}')"}))
    page.route("**/specialties", altered(poisoned))
    page.route("**/readyz", altered(poisoned))
    page.reload()
    expect(page.locator("#specialty option")).to_have_count(11)
    visit.ask("x")
    assert page.locator(".text").inner_text() == CANARY
    for view in VIEWS[1:]:
        page.goto(f"{visit.url}/{view}")
        assert CANARY in page.locator("main").inner_text()
    addresses = page.locator("a").evaluate_all("all => all.map(one => one.protocol)")
    assert set(addresses) == {"http:"}
    assert page.evaluate("[window.pwned, document.images.length, document.scripts.length]") == [None, 0, 2]


def altered(change: Callable[[Any], Any]) -> Callable[[Route], None]:
    """A handler that changes the JSON that the server sends."""
    return lambda route: route.fulfill(json=change(route.fetch().json()))


def poisoned(told: Any) -> Any:
    """What a server told, with the canary in place of every string but the names by which things are found."""
    if isinstance(told, dict):
        return {key: value if key == "name" else poisoned(value) for key, value in told.items()}
    if isinstance(told, list):
        return [poisoned(one) for one in told]
    return CANARY if isinstance(told, str) else told


def test_a_key_is_asked_for(visit: Visit) -> None:
    """A server that wants a key is given one, which the tab keeps and nothing else does."""
    page = visit.page

    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.continue_()
        else:
            problem = {"title": "Key wanted", "status": 401, "detail": "The key is wrong.", "remedy": "Use another."}
            route.fulfill(status=401, json=problem, content_type="application/problem+json")

    page.route("**/ask", guard)
    page.locator("#question").fill(CHEST)
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(page.locator("#key-field")).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-why")).to_contain_text("The key is wrong.")
    page.keyboard.type("right")
    page.keyboard.press("Enter")
    expect(page.locator(".evidence .who")).to_have_text("Cardiology", timeout=ANSWER_MS)
    stored = page.evaluate("[Object.entries(sessionStorage), Object.entries(localStorage), document.cookie]")
    assert stored == [[["hlo-key", "right"]], [], ""]
    page.locator("#key").click()
    page.get_by_role("button", name="Forget key").click()
    assert page.evaluate("sessionStorage.length") == 0


def test_nothing_is_kept(visit: Visit) -> None:
    """What was typed and answered is in no storage, no address and no history, and gone when the page is reloaded."""
    page = visit.page
    visit.ask(CHEST)
    page.locator("#question").fill(FACE)
    kept = "[localStorage.length, sessionStorage.length, document.cookie, history.length, location.href]"
    assert page.evaluate(kept) == [0, 0, "", 2, f"{visit.url}/"]
    assert page.evaluate("async () => [(await caches.keys()).length, (await indexedDB.databases()).length]") == [0, 0]
    page.reload()
    expect(page.locator("#specialty option")).to_have_count(11)
    assert page.locator("#question").input_value() == ""
    assert page.locator(".turn").count() == 0
    assert {one.method for one in visit.requests if CHEST[:20] in f"{one.url} {one.post_data}"} == {"POST"}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_use_it(theme: str, browser: Browser, server: Server) -> None:
    """axe finds nothing in any view, in either theme, and on a narrow screen nothing has to be scrolled sideways."""
    axe, found = Axe(), list[str]()
    with visiting(browser, server.url, TOKENS, color_scheme=theme, reduced_motion="reduce") as visit:
        page = visit.page
        expect(page.locator("#specialty option")).to_have_count(11)
        assert page.locator("html").get_attribute("data-theme") == theme

        def look() -> None:
            results = axe.run(page)
            found.extend(
                f"{place}: {one['help']} {[node['html'] for node in one['nodes']]}"
                for one in results.response["violations"]
            )

        for view in VIEWS:
            place = view or "welcome"
            page.goto(f"{server.url}/{view}")
            page.locator(":is(.card, .refusals, .panel, .samples):visible").first.wait_for()
            look()
        page.goto(f"{server.url}/#ask")
        place = "answers"
        visit.ask(FACE)
        page.get_by_label("Compare").check()
        visit.ask(CHEST)
        visit.ask("x" * 4001)
        page.locator("#question").fill("x" * 4001)
        look()
        assert page.locator(".text").first.evaluate("one => getComputedStyle(one, '::after').animationName") == "none"
        place = "dialog"
        page.evaluate("document.getElementById('key-dialog').showModal()")
        look()
        page.keyboard.press("Escape")
        page.set_viewport_size({"width": 340, "height": 700})
        for view in ("#ask", *VIEWS[1:]):
            page.goto(f"{server.url}/{view}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 340, view
    assert found == []


def test_the_theme_can_be_chosen(browser: Browser, server: Server) -> None:
    """The page begins in the system's theme; a button changes it, and the choice is remembered."""
    ground = "getComputedStyle(document.body).backgroundColor"
    with visiting(browser, server.url, TOKENS, color_scheme="light") as visit:
        page = visit.page
        light = page.evaluate(ground)
        button = page.get_by_role("button", name="Dark theme")
        assert button.get_attribute("aria-pressed") == "false"
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        dark = page.evaluate(ground)
        assert dark != light
        page.reload()
        assert page.evaluate(ground) == dark
        assert page.evaluate("Object.entries(localStorage)") == [["hlo-theme", "dark"]]
