"""A page as plain records, and its one HTML file: styles, scripts, pictures and plots are inside it.

Whatever stands in a record is text: it is escaped here, once. The page's Content-Security-Policy lets only the scripts
of this package run and forbids every connection.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeAlias, Union

from PIL import Image

from dinowds.errors import ConfigError
from dinowds.files import output_errors, remove_abandoned, write_atomic

Figure: TypeAlias = Mapping[str, Any]
"""Of Plotly: `data` and `layout`, as plain JSON values. Colours are tokens of the page's scheme, see `plots`."""
Cell: TypeAlias = Union[str, int, float, None]  # noqa: UP007  (a value, not an annotation)
"""Of a table; None is shown as a dash."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Notice:
    """Something that must not be overlooked."""

    level: Literal["note", "warning", "problem"]
    text: str
    lists: Mapping[str, Sequence[str]] | None = None
    """Heading → points, such as causes and options."""


@dataclass(frozen=True)
class Facts:
    """Names and values, such as those at a page's head."""

    pairs: Sequence[tuple[str, Cell]]


@dataclass(frozen=True)
class Table:
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    """The first cell of a row is its heading."""

    @property
    def are_numbers(self) -> list[bool]:
        """Of each column: it has nothing but numbers and gaps, and is aligned on the right."""
        columns = zip(*self.rows, strict=True) if self.rows else ([] for _ in self.head)
        return [any(map(_is_number, column)) and not any(isinstance(c, str) for c in column) for column in columns]


@dataclass(frozen=True)
class Choice:
    """One of the ways in which a plot can be looked at."""

    name: str
    shows: Sequence[int]
    """Positions of the traces that are shown; the others are hidden."""


@dataclass(frozen=True)
class Sprite:
    """Small pictures of points, in one picture: the i-th is in row i // columns and column i % columns."""

    content: bytes
    """PNG, JPEG or WebP."""
    side: int
    """Of a small picture, px."""
    columns: int


@dataclass(frozen=True)
class Plot:
    """A Plotly figure, drawn by the page."""

    title: str
    figure: Figure
    alt: str
    """For who cannot see it: what it shows, with the figures that matter."""
    note: str = ""
    """Beside the title: what to look for."""
    height: int = 280
    """px."""
    most_width: int | None = None
    """px; None for all there is."""
    choices: Sequence[Choice] = ()
    choose: str = "Colour by"
    """Label of the choices."""
    sprite: Sprite | None = None
    """Shown under the pointer; the `customdata` of a point is the number of its picture."""
    linked: str = ""
    """Plots with the same word zoom their x axes together."""


@dataclass(frozen=True)
class Picture:
    content: bytes
    """PNG, JPEG or WebP."""
    alt: str
    caption: str = ""

    @property
    def url(self) -> str:
        return data_url(self.content)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px."""
        return Image.open(io.BytesIO(self.content)).size


@dataclass(frozen=True)
class Gallery:
    """Pictures beside each other, with one caption."""

    caption: str
    pictures: Sequence[Picture]
    columns: int
    """Of a wide window; a narrow one has fewer, or scrolls."""


@dataclass(frozen=True)
class Matrix:
    """Pictures in rows and columns that mean something; a narrow window scrolls."""

    caption: str
    head: Sequence[str]
    """Of the columns."""
    rows: Sequence[tuple[str, Sequence[Picture | None]]]
    """Name of a row, and its picture in each column."""
    note: str = ""


@dataclass(frozen=True)
class Columns:
    """Blocks beside each other where the window is wide enough for two."""

    blocks: Sequence[Block]


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown when asked for."""

    title: str
    blocks: Sequence[Block]


Block: TypeAlias = Union[  # noqa: UP007  (a value that names a later one)
    Text, Notice, Facts, Table, Plot, Picture, Gallery, Matrix, Columns, Folded
]


@dataclass(frozen=True)
class Section:
    title: str
    anchor: str
    """ASCII letters, digits and hyphens; unique in its page."""
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: str
    sections: Sequence[Section]
    lead: Sequence[Block] = ()
    """Before the first section."""


def write_page(page: Page, path: Path) -> int:
    """Write the page, whole or not at all; its size in bytes.

    Raises:
        ConfigError: the packages of the extra `report` are missing.
        OutputError: it cannot be written.
    """
    content = render(page).encode(errors="replace")  # names of files need not be UTF-8
    with output_errors(path):
        remove_abandoned(path)
        write_atomic(path, content)
    return len(content)


def render(page: Page) -> str:
    """The HTML. Raises ConfigError where the packages of the extra `report` are missing."""
    environment, plotly = _packages()
    scripts = {name: _own_file(name) for name in ("scheme.js", "page.js")}
    scripts["plotly"] = plotly if any(isinstance(block, Plot) for block in _walk(page)) else ""
    return str(
        environment.from_string(_own_file("page.html")).render(
            page=page, style=_own_file("page.css"), scripts=scripts, policy=_policy(scripts.values())
        )
    )


def data_url(content: bytes) -> str:
    """A picture as a URL of itself. Raises ValueError for what is not PNG, JPEG or WebP."""
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}
    kind = next((kind for start, kind in kinds.items() if content.startswith(start)), None)
    if kind is None:
        raise ValueError("a picture that is not PNG, JPEG or WebP")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def shown(cell: Cell) -> str:
    """A value as people read it: thousands separated, four digits of what is not whole, a dash for None and NaN."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    if isinstance(cell, bool | str):
        return str(cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if abs(cell) < 1e4 else f"{cell:,.0f}"


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def script_json(content: Any) -> str:
    """JSON that cannot end the script element it stands in, nor begin a comment; what is not finite is null."""
    text = json.dumps(_finite(content), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def _walk(page: Page) -> Iterator[Block]:
    """All blocks, those in others too."""
    waiting = [*page.lead, *(block for section in page.sections for block in section.blocks)]
    while waiting:
        block = waiting.pop()
        yield block
        if isinstance(block, Columns | Folded):
            waiting.extend(block.blocks)


def _policy(scripts: Iterable[str]) -> str:
    """Only these scripts, by their digests; styles and pictures of the page itself; no connection at all."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts if script)
    return "; ".join(
        (
            "default-src 'none'",
            "script-src " + " ".join(f"'sha256-{digest}'" for digest in digests),
            "style-src 'unsafe-inline'",  # Plotly's own, which it makes as it draws
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _own_file(name: str) -> str:
    return (files("dinowds.report") / name).read_text(encoding="utf-8")


@cache
def _packages() -> tuple[Any, str]:
    """Jinja's environment and Plotly's script."""
    try:
        import jinja2
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigError(
            f"a report needs the package {error.name}, which is missing: pip install 'dinowds[report]'"
        ) from None
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "script_json": lambda content: Markup(script_json(content))}
    environment.globals["kind_of"] = lambda block: type(block).__name__
    environment.globals["data_url"] = data_url
    return environment, get_plotlyjs()
