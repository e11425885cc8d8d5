from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

from dinowds.config import CropsConfig
from dinowds.crops.recipe import RENDERERS, patch_recipe, sample_generator, sample_views
from dinowds.crops.render import get_renderer, render_views
from dinowds.errors import ConfigError

MakeImage: TypeAlias = Callable[[str, int, int, int], npt.NDArray[np.uint8]]


@pytest.mark.parametrize("name", RENDERERS)
def test_render_views__fills_every_view(name: str, make_image: MakeImage) -> None:
    recipe = patch_recipe(CropsConfig(64, [0.4, 1.0], 3, 32, [0.05, 0.4]))
    image = make_image("photo", 80, 90, 0)
    views = sample_views(sample_generator(0, 0, 0), recipe, 80, 90)
    outs = [np.empty((output.count, output.size, output.size, 3), np.uint8) for output in recipe.outputs]
    render_views(name, image, views, [view for out in outs for view in out])
    render = get_renderer(name)
    for view, found in zip(views, [view for out in outs for view in out], strict=True):
        alone = np.empty_like(found)
        render(image, view, alone)
        np.testing.assert_array_equal(found, alone)


def test_render_views__refuses_another_number_of_outs(make_image: MakeImage) -> None:
    views = sample_views(sample_generator(0, 0, 0), patch_recipe(CropsConfig()), 64, 64)
    with pytest.raises(ValueError, match="shorter"):
        render_views("pil", make_image("noise", 64, 64, 0), views, [np.empty((224, 224, 3), np.uint8)])


def test_get_renderer__names_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"^crops\.renderer: found 'gpu', expected one of cpu, pil"):
        get_renderer("gpu")


def test_get_renderer__imports_only_what_is_asked_for() -> None:
    code = (
        "import sys; import dinowds.crops.render as r; assert not {'cv2', 'torch', 'torchvision'} & set(sys.modules);"
    )
    code += "r.get_renderer('cpu'); assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
