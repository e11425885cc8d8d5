"""Examples of views: those of a training run."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from dinowds.config import CropsConfig, GlobalCropsConfig, LocalCropsConfig
from dinowds.crops import cpu
from dinowds.crops.examples import draw_examples, render_views
from dinowds.crops.recipe import patch_recipe, sample_batch
from dinowds.crops.reduction import best_reduction
from dinowds.crops.sheet import mean_difference
from dinowds.data.dataset import Dataset
from dinowds.data.decode import decode_image, decode_reduced


def test_examples__are_those_of_a_training_run(dataset_path: Path) -> None:
    recipe = patch_recipe(CropsConfig(local=LocalCropsConfig(count=2)))
    dataset = Dataset.open(dataset_path)
    for sheet_sample in draw_examples(dataset, 4, ["pil"], recipe, 5, True, lambda _: None):
        [sample] = [sample for sample in dataset if sample.key == sheet_sample.name]
        height, width = sheet_sample.image.shape[:2]
        expected = sample_batch(5, [0], [sample.id], recipe, [height], [width])[0]
        assert np.array_equal(sheet_sample.records, expected)
        assert [view.shape for view in sheet_sample.renderings[0].views] == 2 * [(3, 224, 224)] + 2 * [(3, 96, 96)]


def test_examples__are_made_of_a_reduced_image_where_training_does() -> None:
    crops = CropsConfig(
        global_=GlobalCropsConfig(size=32), local=LocalCropsConfig(count=1, size=16, scale=[0.3, 0.4]), jitter=0.0
    )
    few = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(few).resize((512, 512), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    image = decode_image(file.getvalue())
    views = sample_batch(0, [0], [0], patch_recipe(crops), [512], [512])[0]
    [found] = render_views(["cpu"], file.getvalue(), image, views)
    reduced, reduction = decode_reduced(file.getvalue(), int(best_reduction(views)))
    assert reduction > 1
    expected = [np.empty_like(view) for view in found.views]
    cpu.render(reduced, views, expected, reduction)
    assert all(np.array_equal(view, other) for view, other in zip(found.views, expected, strict=True))
    of_all = render_views(["pil", "cpu"], file.getvalue(), image, views)
    assert mean_difference(of_all[0].views, of_all[1].views) < 1
    assert of_all[0].label == "pil  ·  reference"
    assert of_all[1].label.startswith("cpu  ·  mean difference from pil 0.")
