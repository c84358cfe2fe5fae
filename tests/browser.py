"""A real browser for the tests of pages: Chromium, driven by Playwright; axe-core judges accessibility."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")

REACHED = """() => {
  const at = document.activeElement;
  return at === document.body ? null : [...document.querySelectorAll("*")].indexOf(at);
}"""
REACHABLE = """() => {
  const all = [...document.querySelectorAll("*")];
  const can = all.filter(each => each.tabIndex >= 0 && !each.disabled && each.checkVisibility());
  return can.map(each => all.indexOf(each));
}"""


@contextmanager
def opened(address: str, *, expected: str | None = None, **options: Any) -> Iterator[Page]:
    """A page of the browser. At the end: nothing but what is `expected` may have failed on it, and nothing been asked
    of another place."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])
        try:
            page = browser.new_context(**options).new_page()
            said: list[str] = []
            asked: list[str] = []
            page.on(
                "console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None
            )
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(address)
            yield page
            assert [each for each in said if expected is None or expected not in each] == []
            place = "/".join(address.split("/")[:3])
            assert [url for url in asked if not url.startswith((place, "data:"))] == []
        finally:
            browser.close()


def barriers(page: Page) -> list[str]:
    """What would be in the way of people with a screen reader, a keyboard or weak eyes, by axe-core's rules."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"]]


def not_reached_by_keyboard(page: Page) -> list[int]:
    """Elements that can be used, and that pressing the tabulator never comes to."""
    wanted = set(page.evaluate(REACHABLE))
    for _ in range(len(wanted) + 1):
        page.keyboard.press("Tab")
        wanted.discard(page.evaluate(REACHED))
    return sorted(wanted)


def brightness(page: Page) -> float:
    """Of the page's background, 0 to 255."""
    colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red, green, blue = (float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])
    return (red + green + blue) / 3
