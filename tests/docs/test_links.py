"""Links between the pages, and to files beside them, lead somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import IDS, PAGES, ROOT, anchors, links


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links__lead_to_files_and_headings(page: Path) -> None:
    for link in links(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES[1:], ids=IDS[1:])
def test_links__of_pages_of_the_site_stay_in_it(page: Path) -> None:
    outside = [link for link in links(page) if "://" not in link and link.startswith(("..", "/"))]
    assert not outside


def test_readme__names_every_page() -> None:
    named = {link for link in links(PAGES[0]) if link.startswith("docs/")}
    assert named >= {str(page.relative_to(ROOT)) for page in PAGES[1:]}


def test_anchors__as_github_names_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Nearest neighbours, while it trains\n## `a_b` [c](d.md)\n## x\n### x\n```sh\n# no heading\n```\n"
    )
    assert anchors(page) == {"nearest-neighbours-while-it-trains", "a_b-c", "x", "x-1"}
