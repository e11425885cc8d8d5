"""Pages in a browser: what is drawn, what is asked of the network, and whether anyone can use them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from dinowds.report.dataset import dataset_page
from dinowds.report.page import write_page
from dinowds.report.run import run_page
from tests.browser import NARROW, WIDE, check_drawn, opened, wait_until_drawn
from tests.report.dataset.support import make_listed, two_cohorts
from tests.report.pages import HOSTILE, every_block


@pytest.fixture(scope="session")
def pages(run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page with every block, and those of a run and of a dataset."""
    folder = tmp_path_factory.mktemp("pages")
    paths = {name: folder / f"{name}.html" for name in ("blocks", "run", "dataset")}
    write_page(every_block(), paths["blocks"])
    write_page(run_page([run_path]), paths["run"])
    write_page(dataset_page(str(make_listed(folder / "listed", two_cohorts()))), paths["dataset"])
    return paths


@pytest.mark.parametrize("which", ["blocks", "run", "dataset"])
@pytest.mark.parametrize(("width", "scheme"), [(WIDE, "light"), (NARROW, "dark")])
def test_page__everything_is_drawn_and_nothing_is_asked_for(
    browser: Browser, pages: dict[str, Path], which: str, width: int, scheme: str
) -> None:
    with opened(browser, pages[which], width, scheme) as seen:
        assert check_drawn(seen, width, scheme) > 0


def test_page__names_stay_text(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["blocks"]) as seen:
        assert seen.page.title().startswith(HOSTILE)
        assert seen.page.locator("h1").inner_text() == HOSTILE
        assert seen.page.locator("main b").count() == 0
        legend = seen.page.locator(".plot .legendtext").first.text_content()
        assert legend == HOSTILE


def test_page__zoom_changes_the_axis_of_all_that_are_linked(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["run"]) as seen:
        page = seen.page
        before = ranges(page)
        assert len(before) > 10
        drag(page, page.locator(".plot").first.locator(".nsewdrag").first)
        page.wait_for_timeout(600)
        after = ranges(page)
        assert all(old != new for old, new in zip(before, after, strict=True))
        assert after[0][0] > before[0][0] + 1
        assert all(new[0] == pytest.approx(after[0][0]) for new in after)
        page.locator("#scheme").click()
        wait_until_drawn(page)
        assert ranges(page) == after  # other colours, the same view
        page.locator(".plot").first.locator(".nsewdrag").first.dblclick()
        page.wait_for_timeout(600)
        assert all(new[0] < 2 for new in ranges(page))
        assert seen.errors == []


def ranges(page: Page) -> list[list[float]]:
    """Of the x axes of curves over steps."""
    found: list[list[float]] = page.evaluate(
        "[...document.querySelectorAll('.plot[data-linked]')].map((plot) => plot._fullLayout.xaxis.range.map(Number))"
    )
    return found


def drag(page: Page, place: Any) -> None:
    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.4, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, middle, steps=5)
    page.mouse.up()


def test_page__the_toggle_changes_colours_of_page_and_plots(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["blocks"]) as seen:
        page = seen.page
        light = colours(page)
        button = page.get_by_role("button", name="Dark colours")
        assert button.get_attribute("aria-pressed") == "false"
        button.click()
        wait_until_drawn(page)
        assert button.get_attribute("aria-pressed") == "true"
        assert all(old != new for old, new in zip(light, colours(page), strict=True))
        button.click()
        wait_until_drawn(page)
        assert colours(page) == light


def colours(page: Page) -> list[str]:
    """Of the page, of its text, and of a plot's curve and axis."""
    found: list[str] = page.evaluate(
        """() => [
             getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
             getComputedStyle(document.querySelector(".plot .js-line")).stroke,
             getComputedStyle(document.querySelector(".plot .xtick text")).fill,
           ]"""
    )
    return found


def test_page__choices_and_thumbnails_of_a_map(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["blocks"]) as seen:
        page = seen.page
        plot = page.locator(".plot[data-side]")
        assert plot.locator(".legendtext").all_text_contents()[0] == "b (2)"
        page.get_by_label("Colour by").select_option("slide")
        plot.locator(".legendtext", has_text="s (2)").wait_for()
        point = plot.locator(".points path").last
        point.scroll_into_view_if_needed()
        box = point.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.locator(".thumbnail").wait_for(state="visible")
        assert (
            page.locator(".thumbnail").evaluate("(e) => e.style.backgroundPosition") == "0px -48px"
        )  # number 2 of 2 × 2
        page.mouse.move(1, 1)
        page.locator(".thumbnail").wait_for(state="hidden")


@pytest.mark.parametrize("which", ["blocks", "run", "dataset"])
def test_page__headings_names_and_keyboard(browser: Browser, pages: dict[str, Path], which: str) -> None:
    with opened(browser, pages[which]) as seen:
        page = seen.page
        levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => Number(h.tagName[1]))")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert page.evaluate("document.documentElement.lang") == "en"
        assert page.evaluate("[...document.images].every((i) => i.alt.length > 3 || i.className === 'sprite')")
        assert page.evaluate("[...document.querySelectorAll('.plot')].every((p) => p.ariaLabel.length > 3)")
        assert page.evaluate("[...document.querySelectorAll('table')].every((t) => t.caption || t.closest('figure'))")
        assert page.evaluate("[...document.querySelectorAll('select')].every((s) => s.labels.length)")
        anchors = page.evaluate("[...document.querySelectorAll('nav a')].map((a) => a.getAttribute('href').slice(1))")
        assert anchors
        assert page.evaluate("(names) => names.every((name) => document.getElementById(name))", anchors)
        names = page.evaluate("[...document.querySelectorAll('[id]:not(svg [id], svg)')].map((e) => e.id)")
        assert len(names) == len(set(names))
        page.keyboard.press("Tab")
        focus = page.evaluate(
            "() => { const e = document.activeElement; return [e.className, e.getBoundingClientRect().left >= 0,"
            " getComputedStyle(e).outlineStyle]; }"
        )
        assert focus == ["skip", True, "solid"]
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page__text_has_contrast(browser: Browser, pages: dict[str, Path], scheme: str) -> None:
    """WCAG 2.2's 4.5 of text, 3 of curves."""
    with opened(browser, pages["blocks"], scheme=scheme) as seen:
        found = seen.page.evaluate(CONTRASTS)
        assert len(found["text"]) > 50
        assert min(found["text"], key=lambda item: item[1])[1] >= 4.5
        assert min(found["lines"]) >= 3


CONTRASTS = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = parts(colour).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (...two) => (Math.max(...two.map(light)) + 0.05) / (Math.min(...two.map(light)) + 0.05);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (parts(colour)[3] !== 0) return colour;
    }
  };
  const text = [], own = document.querySelectorAll("body *:not(script):not(style)");
  for (const e of own) {
    const says = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!says || e.closest(".hm, .modebar, [hidden]") || !e.getBoundingClientRect().width) continue;
    const style = getComputedStyle(e), isDrawn = e.closest("svg");
    if (isDrawn && e.classList.contains("bartext")) continue;
    text.push([e.tagName + " " + e.textContent.slice(0, 20), ratio(isDrawn ? style.fill : style.color, behind(e))]);
  }
  const paper = getComputedStyle(document.body).backgroundColor;
  const lines = [...document.querySelectorAll(".plot .js-line")].map((e) => ratio(getComputedStyle(e).stroke, paper));
  return { text, lines };
}"""
"""Of each text with what is behind it, and of each curve with the page."""
