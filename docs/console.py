"""Takes the pictures of the console in docs/, light and dark, from a real server: `nox -s pictures`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import Page, ViewportSize

from tests.e2e.browser import Visit, chromium, visiting
from tests.e2e.reference import ADAPTERS
from tests.e2e.server import running

FOLDER = Path(__file__).parent
SIZE: ViewportSize = {"width": 1240, "height": 820}
THEMES = ("light", "dark")
CHEST = "My chest feels tight when I climb the stairs and it goes away when I rest. What could it be?"
STROKE = "My face droops on one side and I can't lift my arm since this morning"


def ask(visit: Visit) -> None:
    """One question, its route, and the answer beside it."""
    visit.ask(CHEST)


def compare(visit: Visit) -> None:
    """A question that speaks of an emergency, answered by a specialist and by the base model."""
    # Two answers, each with a notice, are higher than one.
    visit.page.set_viewport_size({"width": SIZE["width"], "height": SIZE["height"] + 80})
    visit.page.get_by_role("button", name="New conversation").click()
    visit.page.get_by_label("Compare").check()
    visit.ask(STROKE)


def specialties(visit: Visit) -> None:
    """What is served, and what is refused."""
    visit.page.set_viewport_size(SIZE)
    visit.page.goto(f"{visit.url}/#specialties")
    visit.page.locator(".refusals").wait_for()


PICTURES = (ask, compare, specialties)


def take(page: Page, name: str, theme: str) -> None:
    """Take one picture, without whatever is focused."""
    page.evaluate("document.activeElement?.blur()")
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)  # the bars grow
    page.screenshot(path=FOLDER / f"console-{name}-{theme}.png")


def main() -> None:
    """Start a server that lacks an adapter, and take all pictures in both themes."""
    with tempfile.TemporaryDirectory() as folder:
        adapters = Path(folder, "adapters")
        shutil.copytree(ADAPTERS, adapters, ignore=shutil.ignore_patterns("recipe", "hematology"))
        with (
            running(Path(folder), HLO_ENGINE="transformers", ADAPTER_PATH=str(adapters)) as server,
            chromium() as browser,
        ):
            for theme in THEMES:
                with visiting(browser, server.url, color_scheme=theme, viewport=SIZE, device_scale_factor=1.5) as visit:
                    visit.page.locator("#specialty option").nth(2).wait_for(state="attached")
                    for picture in PICTURES:
                        picture(visit)
                        take(visit.page, picture.__name__, theme)


if __name__ == "__main__":
    main()
