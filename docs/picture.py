"""Draw docs/picture.png: a patch, the views that DINO learns from, and the curves of a demo run.

pip install matplotlib
dinowds demo && python docs/picture.py demo/run docs/picture.png
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from dinowds.config import CropsConfig, load_config
from dinowds.crops.recipe import patch_recipe, sample_generator, sample_views
from dinowds.crops.render import get_renderer
from dinowds.demo import photo_folder


def draw_views(figure: Any) -> None:
    """A tissue patch with the boxes of its views, and the views as the `cpu` renderer makes them."""
    with Image.open(photo_folder() / "ihc.png") as photo:
        image = np.asarray(photo.convert("RGB"))[100:356, 30:286]
    views = sample_views(sample_generator(0, 0, 5), patch_recipe(CropsConfig()), *image.shape[:2])
    rendered = [np.empty((3, size, size), np.uint8) for size in views["size"]]
    get_renderer("cpu")(image, views, rendered)
    axes = figure.subplot_mosaic(
        [["patch", "patch", 0, 0, 1, 1, 2, 3, 4, 5], ["patch", "patch", 0, 0, 1, 1, 6, 7, 8, 9]]
    )
    for name, axis in axes.items():
        axis.imshow(image if name == "patch" else rendered[name].transpose(1, 2, 0))
        axis.axis("off")
    for view in views:
        colour = "black" if view["size"] == 224 else "white"
        corner, width, height = (view["left"], view["top"]), view["width"], view["height"]
        box = plt.Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=1.2)
        axes["patch"].add_patch(box)
    for name, title in (("patch", "a patch, 256 px"), (0, "2 global views, 224 px"), (2, "8 local views, 96 px")):
        axes[name].set_title(title, fontsize=10, loc="left")


def draw_curves(figure: Any, run: Path) -> None:
    """Loss with ln K, and nearest-neighbour accuracy, over the steps of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ln_k = math.log(load_config(run / "config.yaml").student.out_dim)
    loss, accuracy = figure.subplots(1, 2)
    for axis, names in ((loss, ("loss", "teacher_entropy")), (accuracy, ("knn_teacher", "knn_student"))):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axis.plot(*zip(*points, strict=True), label=name.replace("knn_", "").replace("_", " "))
        axis.set_xlabel("optimizer step", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    loss.axhline(ln_k, color="grey", linestyle=":", label="ln K")
    loss.set_title("the demo's loss", fontsize=10, loc="left")
    accuracy.set_title("the demo's 20-NN accuracy on held-out halves", fontsize=10, loc="left")
    loss.legend(frameon=False, fontsize=8)
    accuracy.legend(frameon=False, fontsize=8)


def main(run: Path, path: Path) -> None:
    figure = plt.figure(figsize=(12, 5.6), layout="constrained", facecolor="white")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.15, 1])
    draw_views(top)
    draw_curves(bottom, run)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
