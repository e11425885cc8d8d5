"""Draw the pictures of the README from what `make demo` leaves: views, curves of the run's page, attention.

pip install '.[dev]' and a Chromium
dinowds demo && python docs/pictures.py demo docs/pictures
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, GAP = 1200, 32
"""px."""
PLOTS = ("#learning figure", "#quality figure")
"""Of a run's page: the first of each section, the loss and the nearest neighbours."""


def shrink(picture: Image.Image, path: Path) -> None:
    """At most `WIDTH` px wide, in 256 colours."""
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)


def draw_curves(page: Path) -> Image.Image:
    """Plots of a run's page, beside each other, as a browser shows them."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        view.goto(page.resolve().as_uri())
        shots = []
        for selector in PLOTS:
            figure = view.locator(selector).first
            figure.locator(".main-svg").first.wait_for()
            shots.append(Image.open(io.BytesIO(figure.screenshot())).convert("RGB"))
        browser.close()
    whole = Image.new("RGB", (sum(shot.width + GAP for shot in shots), max(shot.height for shot in shots)), "white")
    left = 0
    for shot in shots:
        whole.paste(shot, (left, 0))
        left += shot.width + GAP
    return whole


def main(demo: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    for name, path in (("views", demo / "crops.png"), ("attention", demo / "attention" / "chelsea.png")):
        with Image.open(path) as image:
            shrink(image.convert("RGB"), out / f"{name}.png")
    shrink(draw_curves(demo / "run" / "report.html"), out / "curves.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
