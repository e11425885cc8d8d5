"""A page with every kind of block, and with names that would do harm if they were taken for markup."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dinowds.report.page import (
    Columns,
    Facts,
    Folded,
    Gallery,
    Notice,
    Page,
    Picture,
    Plot,
    Section,
    Sprite,
    Table,
    Text,
)
from dinowds.report.plots import (
    Level,
    Line,
    bar_figure,
    heat_figure,
    histogram_figure,
    line_figure,
    map_figure,
    ordered_colour,
)

HOSTILE = "<script>document.title='taken'</script></script><b>&amp;{x}${y}"


def png(seed: int, size: int = 48) -> bytes:
    """A smooth colourful picture."""
    content = io.BytesIO()
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(content, "PNG")
    return content.getvalue()


def every_block(name: str = HOSTILE) -> Page:
    """One of each."""
    steps = list(range(1, 401))
    noise = np.random.default_rng(0).normal(0, 0.1, len(steps))
    curve = [6.9 * 0.998**step + float(noise[step - 1]) for step in steps]
    lines = [Line(name, steps, curve), Line("other", steps, [5.0] * 200 + [float("nan")] * 200, "@1", "dash")]
    blocks = [Line(f"blocks.{i}", steps, [0.1 * (i + 1)] * 400, ordered_colour(i / 11)) for i in range(12)]
    figure = map_figure(
        [0.0, 1.0, 2.0], [0.0, 1.0, 0.5], {"cohort": [name, "b", "b"], "slide": ["s", "s", "t"]}, ("first", "second")
    )
    counts = histogram_figure([0, 1, 2, 3], {name: [1, 5, 2]}, "bytes", "samples")
    confusion = heat_figure(["a", name], ["a", name], [[0.9, 0.1], [0.2, 0.8]], [["9", "1"], ["2", "8"]], "said", "is")
    return Page(
        name,
        f"a page of {name}",
        [
            Section(
                "Words",
                "words",
                [
                    Text(f"A paragraph about {name}."),
                    Notice("warning", f"Beware of {name}.", {"Usual causes": ["a", name], "What to try": ["b"]}),
                    Notice("problem", "Something failed."),
                    Notice("note", "Nothing did."),
                    Table(f"Names of {name}", ("name", "samples", "share"), [(name, 1234567, 0.25), ("b", None, 1e9)]),
                    Folded(f"More of {name}", [Text("Folded text.")]),
                ],
            ),
            Section(
                "Plots",
                "plots",
                [
                    Plot(f"Loss of {name}", line_figure(lines, "step", "nats", [Level(6.9, f"ln K {name}")]), "falls"),
                    Columns(
                        [
                            Plot("Bytes", counts, "most have two"),
                            Plot(
                                "Blocks", line_figure(blocks, "step", "norm", log_y=True), "grow", "Deeper is lighter."
                            ),
                            Plot("Cohorts", bar_figure([name, "b"], [3, 4], "samples", ""), "b has more"),
                            Plot("Confusion", confusion, "mostly right"),
                        ]
                    ),
                    Plot(
                        "Map",
                        figure.figure,
                        "three points",
                        choices=figure.choices,
                        sprite=Sprite(png(0, 96), 48, 2),
                        height=480,
                    ),
                ],
            ),
            Section(
                "Pictures",
                "pictures",
                [
                    Picture(png(1), f"a picture of {name}", f"One of {name}"),
                    Gallery("Some", [Picture(png(i), f"number {i}", f"{i} {name}") for i in range(6)], 4),
                ],
            ),
        ],
        [Facts((("name", name), ("samples", 123456), ("share", 0.123456)))],
    )
