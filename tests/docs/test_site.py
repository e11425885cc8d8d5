"""The site: it is built without a warning, and needs no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_site__has_every_page_whole(site: Path) -> None:
    """Blocks and tables came out as such: none was taken for text."""
    for page in PAGES[1:]:
        html = (site / f"{page.stem}.html").read_text(encoding="utf-8")
        article = html[html.index("<article") : html.index("</article>")]
        assert article.count("<pre") >= len(list(blocks(page))), page.name
        text = page.read_text(encoding="utf-8")
        assert article.count("<table>") >= len(re.findall(r"^\|[ :|-]*---[ :|-]*\|$", text, re.MULTILINE)), page.name
        assert "```" not in article, page.name


def test_site__loads_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        html = path.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href|srcset)=[\"']?([^\"'\s>]+)", html)
        assert loaded
        assert not [url for url in loaded if "//" in url and not url.startswith("data:")], path.name
        assert 'class="mermaid"' not in html  # whose script comes from a network
    for path in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", path.read_text(encoding="utf-8")), path.name


def test_site__library_has_what_it_names(site: Path) -> None:
    html = (site / "library.html").read_text(encoding="utf-8")
    for name in re.findall(r"^::: (\S+)$", (ROOT / "docs" / "library.md").read_text(), re.MULTILINE):
        assert f'id="{name}"' in html, name


def test_site__all_keys_are_there(site: Path) -> None:
    html = (site / "configuration.html").read_text(encoding="utf-8")
    for key in ("teacher_temp", "vertical_flip", "input_dim"):
        assert key in html
