"""The playground in a real browser, on a real server: choose, write, compare, label, thumbs up, a missing key."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from playwright.sync_api import Page, expect

from luthier.engine.serving.engine import Engine
from tests.browser import barriers, needs_browser, opened
from tests.serve.servers import serving

pytestmark = needs_browser
ASKED = "a warm film"
ANSWER = ".turn:not(.user)"


def choose(page: Page, pane: int, model: str) -> None:
    page.locator(".pick input").nth(pane).fill(model)


def send(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    expect(page.locator(".writing")).to_have_count(0)


def test_two_models_side_by_side(engine: Engine, adapters: dict[str, Path], tmp_path: Path) -> None:
    kept = tmp_path / "captured.db"
    with serving(engine, adapters, capture=f"sqlite:///{kept}", mask=False) as server:
        asked = {"messages": [{"role": "user", "content": ASKED}], "temperature": 0, "max_tokens": 12}
        said = server.client.chat.completions.create(model="formal", **asked).choices[0].message.content  # type: ignore[call-overload]
        with opened(f"{server.url}/") as page:
            expect(page.locator("#models option")).to_have_count(len(adapters) + 1)
            assert barriers(page) == []
            page.get_by_label("Longest answer").fill("12")
            choose(page, 0, "formal")
            page.get_by_role("button", name="Compare").click()
            choose(page, 1, "reviews")
            send(page, ASKED)
            first, second = page.locator(".pane").all()
            assert first.locator(ANSWER).text_content() == said
            assert "formal · 12 tokens" in first.locator(".figures").inner_text()
            label = server.post("/v1/classify", {"model": "reviews", "input": ASKED}).json()["data"][0]
            expect(second.locator(ANSWER)).to_contain_text(label["label"])
            assert second.locator(".bars dt").count() == len(label["probabilities"])
            first.get_by_role("button", name="Good answer").click()
            expect(first.locator(".below")).to_contain_text("kept")
            assert barriers(page) == []
            page.get_by_role("button", name="New conversation").click()
            assert page.locator(".turn").count() == 0
    with sqlite3.connect(kept) as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        texts = [str(row) for table in tables for row in database.execute(f"select * from {table}")]
    assert any("'up'" in text for text in texts), texts


def test_a_missing_key_is_asked_for(engine: Engine, adapters: dict[str, Path], tmp_path: Path) -> None:
    from luthier.serve.access import new_key

    key = new_key(tmp_path / "keys.json", "jo", ["*"], None, None)
    with (
        serving(engine, adapters, keys=tmp_path / "keys.json") as server,
        opened(f"{server.url}/", expected="401") as page,
    ):
        expect(page.locator(".wrong")).to_be_visible()
        expect(page.get_by_label("API key")).to_be_focused()
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Tab")
        expect(page.locator("#models option")).to_have_count(len(adapters) + 1)
        expect(page.locator(".wrong")).to_have_count(0)
