"""The page's HTML, as text. What a browser makes of it is in test_browser."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from markupsafe import escape

from dinowds.errors import OutputError
from dinowds.report.page import data_url, render, script_json, shown, write_page
from tests.report.pages import HOSTILE, every_block, png


def test_render__nothing_of_a_name_is_markup() -> None:
    text = _without_code(render(every_block()))
    assert HOSTILE not in text
    assert "<b>" not in text
    assert str(escape(HOSTILE)) in text


def test_render__every_script_is_named_in_the_policy_and_nothing_is_fetched() -> None:
    text = render(every_block())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in html.unescape(policy[1]).split("; "))
    assert (rules["default-src"], rules["script-src"].count("'sha256-")) == ("'none'", 3)
    assert "unsafe-eval" not in policy[1]
    assert not re.findall(r'(?:src|href)="(?!data:|#)', _without_code(text))


def test_render__a_page_without_plots_has_no_plotly() -> None:
    page = every_block()
    assert len(render(type(page)("t", "s", page.sections[:1]))) < 100_000


def test_script_json__reads_back_and_ends_no_script() -> None:
    content = {"a": "</script><!--\u2028", "b": [1.5, float("nan"), float("inf"), None], "c": {"d": True}}
    text = script_json(content)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {**content, "b": [1.5, None, None, None]}


@pytest.mark.parametrize(
    ("cell", "expected"),
    [(None, "–"), (float("nan"), "–"), (1234567, "1,234,567"), (0.123456, "0.1235"), (3e-6, "3e-06"),
     (123456.7, "123,457"), (True, "True"), ("a,b", "a,b")],
)  # fmt: skip
def test_shown(cell: str | float | None, expected: str) -> None:
    assert shown(cell) == expected


def test_data_url__is_of_a_picture() -> None:
    assert data_url(png(0)).startswith("data:image/png;base64,")
    with pytest.raises(ValueError, match="not PNG"):
        data_url(b"<svg>")


def test_write_page__whole_or_not_at_all(tmp_path: Path) -> None:
    size = write_page(every_block(), tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size == size
    with pytest.raises(OutputError, match=r"no/page\.html: cannot be written"):
        write_page(every_block(), tmp_path / "no" / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def _without_code(text: str) -> str:
    """Without what is in styles and in scripts that run."""
    return re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL)
