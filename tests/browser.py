"""Pages in a browser that has no network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_BROWSER = "no chromium on this machine (apt install chromium)"
WIDE, NARROW = 1400, 400
"""px."""


@contextmanager
def launched() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Seen:
    """A page that is open, and what it did."""

    page: Page
    requests: list[str] = field(default_factory=list)
    """Other than its own file and its data URLs."""
    errors: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Browser, path: Path, width: int = WIDE, scheme: Any = "light") -> Iterator[Seen]:
    """Wait until everything is drawn. The network is asked, if at all, in vain."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    seen = Seen(context.new_page())

    def judge(route: Any) -> None:
        url = route.request.url
        if url == path.as_uri() or url.startswith("data:"):
            route.continue_()
        else:
            seen.requests.append(url)
            route.abort()

    context.route("**/*", judge)
    seen.page.on("console", lambda message: seen.errors.append(message.text) if message.type != "log" else None)
    seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
    seen.page.goto(path.as_uri())
    wait_until_drawn(seen.page)
    yield seen
    context.close()


def wait_until_drawn(page: Page) -> None:
    page.locator("html[data-drawn=true]").wait_for(state="attached", timeout=120_000)


def check_drawn(seen: Seen, width: int, scheme: str) -> int:
    """Every plot and picture is there, without errors and requests, and nothing sticks out; the number of pictures."""
    page = seen.page
    assert (seen.errors, seen.requests) == ([], [])
    drawn = page.evaluate(
        """() => [...document.querySelectorAll(".plot")].map((plot) => ({
             svg: plot.querySelector("svg.main-svg")?.getBoundingClientRect().width ?? 0,
             traces: plot.querySelectorAll(".trace, .hm image").length,
             width: plot.getBoundingClientRect().width,
           }))"""
    )
    assert len(drawn) >= 6
    assert all(plot["traces"] and plot["svg"] == pytest.approx(plot["width"], abs=2) for plot in drawn)
    pictures = page.evaluate("[...document.images].map((image) => image.complete && image.naturalWidth)")
    assert all(pictures)
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    assert page.evaluate("document.documentElement.dataset.scheme") == scheme
    return len(pictures)
