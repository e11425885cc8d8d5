from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

from dinowds.config import CropsConfig
from dinowds.crops import cpu, pil
from dinowds.crops.recipe import Jitter, View, patch_recipe, sample_generator, sample_views

Pixels: TypeAlias = npt.NDArray[np.uint8]
MakeImage: TypeAlias = Callable[[str, int, int, int], Pixels]

RECIPE = patch_recipe(CropsConfig())
SIZES = ((256, 256), (200, 333), (40, 60), (255, 129), (97, 224))
PLAIN = View(0, 0, 224, 224, 224, False, None, False, None, None)
"""The whole of an image of 224 px as it is."""


def difference(image: Pixels, view: View) -> float:
    """Mean absolute difference of the two renderers, grey levels."""
    outs = [np.full((view.size, view.size, 3), fill, np.uint8) for fill in (3, 250)]
    cpu.render(image, view, outs[0])
    pil.render(image, view, outs[1])
    return float(np.abs(outs[0].astype(int) - outs[1]).mean())


def jitter_alone(index: int, value: float) -> View:
    """Pillow leaves an image as it is for a factor of 1, but not for a hue of 0, so that comes with every other."""
    values = [1.0, 1.0, 1.0, 0.0]
    values[index] = value
    brightness, contrast, saturation, hue = values
    return PLAIN._replace(jitter=Jitter(brightness, contrast, saturation, hue, (0, 1, 2, 3)))


@pytest.mark.parametrize("kind", ["photo", "smooth", "noise"])
def test_render__whole_recipe_as_pil(kind: str, make_image: MakeImage) -> None:
    differences = []
    for sample in range(200):
        height, width = SIZES[sample % len(SIZES)]
        image = make_image(kind, height, width, sample)
        views = sample_views(sample_generator(0, 0, sample), RECIPE, height, width)
        differences += [difference(image, view) for view in views]
    assert len(differences) == 2000
    assert max(differences) <= 1.0
    assert np.mean(differences) <= 0.3


@pytest.mark.parametrize("kind", ["photo", "smooth", "noise"])
@pytest.mark.parametrize(
    ("name", "views", "limit"),
    [
        ("nothing", [PLAIN], 0.0),
        ("flip", [PLAIN._replace(flip=True)], 0.0),
        ("brightness", [jitter_alone(0, factor) for factor in (0.0, 0.61, 0.87, 1.0, 1.13, 1.39)], 0.05),
        ("contrast", [jitter_alone(1, factor) for factor in (0.0, 0.61, 0.87, 1.0, 1.13, 1.39)], 0.05),
        ("saturation", [jitter_alone(2, factor) for factor in (0.0, 0.81, 0.93, 1.0, 1.11, 1.19)], 0.05),
        ("hue", [jitter_alone(3, shift) for shift in (-0.5, -0.1, -0.03, 0.0, 0.05, 0.1, 0.5)], 0.05),
        ("grey", [PLAIN._replace(grey=True)], 0.01),
        (
            "blur",
            [PLAIN._replace(blur=radius) for radius in (0.1, 0.2, 0.3, 0.399, 0.4, 0.5, 0.9, 1.41, 1.42, 2.0)],
            0.75,
        ),
        ("grey blur", [PLAIN._replace(grey=True, blur=radius) for radius in (0.1, 0.5, 1.3, 2.0)], 0.75),
        ("solarize", [PLAIN._replace(solarize=threshold) for threshold in (0, 1, 128, 255, 256)], 0.0),
    ],
)
def test_render__one_operation_as_pil(
    name: str, views: list[View], limit: float, kind: str, make_image: MakeImage
) -> None:
    for seed in range(5):
        image = make_image(kind, 224, 224, seed)
        for view in views:
            assert difference(image, view) <= limit, (name, view)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1)])
def test_render__order_of_jitter_as_pil(order: tuple[int, int, int, int], make_image: MakeImage) -> None:
    view = PLAIN._replace(jitter=Jitter(1.4, 1.35, 1.2, 0.09, order))
    assert difference(make_image("photo", 224, 224, 1), view) <= 0.2


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(200, 180, 224), (256, 256, 96), (60, 70, 96), (1, 1, 8), (1, 7, 8), (9, 1, 5), (5, 9, 1)],
)
def test_render__resize_as_pil(height: int, width: int, size: int, flip: bool, make_image: MakeImage) -> None:
    for kind in ("photo", "noise"):
        view = View(3, 5, height, width, size, flip, None, False, None, None)
        assert difference(make_image(kind, 270, 270, 0), view) <= 0.05


@pytest.mark.parametrize("level", [0, 1, 100, 127, 128, 254, 255])
def test_render__flat_grey_as_pil(level: int) -> None:
    image = np.full((256, 256, 3), level, np.uint8)
    for sample in range(10):
        for view in sample_views(sample_generator(0, 0, sample), RECIPE, 256, 256):
            assert difference(image, view) <= 0.05


def test_render__into_memory_of_a_batch(make_image: MakeImage) -> None:
    image = make_image("photo", 256, 256, 0)
    image.flags.writeable = False
    views = sample_views(sample_generator(0, 0, 3), RECIPE, 256, 256)[2:]
    batch = np.full((2, 8, 96, 104, 3), 77, np.uint8)
    for place, view in enumerate(views):
        alone = np.empty((96, 96, 3), np.uint8)
        cpu.render(image, view, alone)
        cpu.render(image, view, batch[1, place, :, :96])
        np.testing.assert_array_equal(batch[1, place, :, :96], alone)
    assert np.all(batch[0] == 77)
    assert np.all(batch[1, :, :, 96:] == 77)


def test_render__same_bytes_whatever_came_before(make_image: MakeImage) -> None:
    images = [make_image("photo", 256, 256, seed) for seed in range(4)]
    views = [sample_views(sample_generator(0, 0, sample), RECIPE, 256, 256) for sample in range(4)]
    pairs = [(image, view) for image, records in zip(images, views, strict=True) for view in records]

    def render_all(order: list[int]) -> dict[int, bytes]:
        outs = {}
        for index in order:
            image, view = pairs[index]
            out = np.empty((view.size, view.size, 3), np.uint8)
            cpu.render(image, view, out)
            outs[index] = out.tobytes()
        return outs

    expected = render_all(list(range(len(pairs))))
    assert render_all(list(reversed(range(len(pairs))))) == expected
    found: list[dict[int, bytes]] = []
    threads = [threading.Thread(target=lambda: found.append(render_all(list(range(len(pairs)))))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3


@pytest.mark.parametrize("shape", [(224, 224), (224, 224, 4), (3, 224, 224), (96, 96, 3)])
def test_render__refuses_memory_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected uint8 \\[224, 224, 3\\]"):
        cpu.render(np.zeros((224, 224, 3), np.uint8), PLAIN, np.empty(shape, np.uint8))


def test_blur_kernel__is_kept_by_the_8_bit_filter() -> None:
    for steps in range(int(cpu.SMALL_RADIUS * cpu.RADIUS_STEPS), 2 * cpu.RADIUS_STEPS + 1):
        kernel = cpu._blur_kernel(steps)
        weights = 256 * kernel
        assert len(kernel) % 2 == 1
        assert np.all(weights == np.rint(weights))
        assert np.all(weights >= 0)
        assert weights.sum() == 256
        np.testing.assert_array_equal(kernel, kernel[::-1])
        offsets = np.arange(len(kernel)) - len(kernel) // 2
        assert abs(np.sqrt(kernel @ offsets**2) - steps / cpu.RADIUS_STEPS) < 0.05
