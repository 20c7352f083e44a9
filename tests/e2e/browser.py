"""A real Chromium for the tests, and what a page did in it: what it asked for, and what it complained of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from msgspec import Struct
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",  # the sandbox wants another user than root
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
)
ANSWER_MS = 120_000  # as long as an answer may take
PATIENCE_MS = 30_000  # as long as the page may take to show something, on a machine that is busy with others


class Visit(Struct, frozen=True):
    """A page in a browser of its own, at a server's address, and what happened so far.

    `tokens` are the most that an answer may have; None leaves the specialty's default.
    """

    page: Page
    url: str
    requests: list[Request]
    complaints: list[str]
    tokens: int | None = None

    def ask(self, question: str) -> None:
        """Ask, by the keyboard, and wait for the whole answer or for a problem."""
        turns = self.page.locator(".turn").count()
        if self.tokens:
            self.page.locator("#max_tokens").evaluate("(one, most) => { one.value = most; }", self.tokens)
        self.page.locator("#question").fill(question)
        self.page.keyboard.press("Enter")
        last = self.page.locator(".turn").nth(turns)
        last.wait_for()
        last.locator(".running").first.wait_for(state="detached", timeout=ANSWER_MS)

    def asked(self) -> list[dict[str, Any]]:
        """The bodies of the questions that went to the server."""
        return [json.loads(one.post_data or "") for one in self.requests if urlsplit(one.url).path == "/ask"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium. Skips the test where none is installed."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium is installed, and no package for pip has it: `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        expect.set_options(timeout=PATIENCE_MS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visiting(browser: Browser, url: str, tokens: int | None = None, **context: Any) -> Iterator[Visit]:
    """Open the console, as somebody who was never there. It must ask nobody else for anything, and break no policy."""
    with browser.new_context(**context) as visitor:
        page = visitor.new_page()
        visit = Visit(page, url, [], [], tokens)
        page.on("request", lambda request: visit.requests.append(request))
        page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        page.on("console", lambda said: visit.complaints.append(said.text) if said.type == "error" else None)
        page.goto(url)
        yield visit
        elsewhere = [one.url for one in visit.requests if not one.url.startswith(f"{url}/")]
        assert elsewhere == []
        # A response that is no success is told on the browser's own console; that is no fault of the page.
        assert [said for said in visit.complaints if "Failed to load resource" not in said] == []
