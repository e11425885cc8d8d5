"""What all renderers have in common. How alike their pixels are is tested with each of them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from dinowds.config import CropsConfig, GlobalCropsConfig, LocalCropsConfig
from dinowds.crops.recipe import RENDERERS, patch_recipe, sample_generator, sample_views
from dinowds.crops.render import get_renderer
from dinowds.errors import ConfigError
from tests.crops.conftest import MakeImage

NAMES = [name for name in RENDERERS if name != "auto"]
CROPS = CropsConfig(
    global_=GlobalCropsConfig(size=64),
    local=LocalCropsConfig(count=3, size=32, inside_global=True),
    vertical_flip=0.5,
    quarter_turns=True,
    stain=0.5,
)


@pytest.mark.parametrize("name", NAMES)
def test_render__fills_every_view(name: str, make_image: MakeImage) -> None:
    recipe = patch_recipe(CROPS)
    image = make_image("smooth", 80, 90, 0)
    views = sample_views(sample_generator(0, 0, 0), recipe, 80, 90)
    outs = [np.full((output.count, 3, output.size, output.size), 99, np.uint8) for output in recipe.outputs]
    places = [view for out in outs for view in out]
    render = get_renderer(name)
    render(image, views, places)
    for view, found in zip(views, places, strict=True):
        alone = np.zeros_like(found)
        render(image, np.array([view]), [alone])
        np.testing.assert_array_equal(found, alone)
        assert found.std() > 0


@pytest.mark.parametrize("name", NAMES)
def test_render__refuses_another_number_of_outs(name: str, make_image: MakeImage) -> None:
    views = sample_views(sample_generator(0, 0, 0), patch_recipe(CropsConfig()), 64, 64)
    with pytest.raises(ValueError, match=r"shorter|one for each out"):
        get_renderer(name)(make_image("noise", 64, 64, 0), views, [np.empty((3, 224, 224), np.uint8)])


@pytest.mark.parametrize("name", ["gpu", "auto"])
def test_get_renderer__names_the_choices(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^crops\.renderer: found '{name}', expected one of cpu, device, pil$"):
        get_renderer(name)


def test_get_renderer__imports_only_what_is_asked_for() -> None:
    code = (
        "import sys; import dinowds.crops.render as r; assert not {'torch', 'torchvision'} & set(sys.modules);"
        "r.get_renderer('cpu'); assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
