"""The C renderer against the reference, byte by byte."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import pytest

from dinowds.config import CropsConfig, GlobalCropsConfig, LocalCropsConfig
from dinowds.crops import cpu, pil
from dinowds.crops.recipe import MAX_BLUR, Views, patch_recipe, plain_view, sample_generator, sample_views
from dinowds.crops.stain import stain_maps
from tests.crops.conftest import MakeImage, Pixels

RECIPE = patch_recipe(CropsConfig())
CROPS_ALL_ON = CropsConfig(
    global_=GlobalCropsConfig(blur=[0.5], solarize=[0.3]),
    local=LocalCropsConfig(solarize=[0.3], inside_global=True),
    vertical_flip=0.5,
    quarter_turns=True,
    stain=0.5,
    blur_radius=[0.1, 6.0],
)
ALL_ON = patch_recipe(CROPS_ALL_ON)
SIZES = ((256, 256), (200, 333), (40, 60), (255, 129), (97, 224))
KINDS = ("photo", "smooth", "noise")
SIDE = 61
"""Of the views of single operations: odd, so that rows do not begin where vectors do."""

# Before Pillow 13, columns were always resized after rows; rounding between the two makes the difference.
LIMIT = 0.0 if int(PIL.__version__.split(".")[0]) >= 13 else 0.5
"""Mean absolute difference of a view without stain jitter, grey levels."""


def rendered(render: Any, image: Pixels, views: Views, fill: int = 3, **options: Any) -> list[Pixels]:
    outs = [np.full((3, size, size), fill, np.uint8) for size in views["size"].tolist()]
    render(image, views, outs, **options)
    return outs


def differences(image: Pixels, views: Views) -> list[npt.NDArray[np.int64]]:
    """Of each view, in grey levels: [3, size, size]."""
    pairs = zip(rendered(cpu.render, image, views), rendered(pil.render, image, views, 250), strict=True)
    return [np.abs(found.astype(np.int64) - expected) for found, expected in pairs]


def of_side(**changes: Any) -> Views:
    return np.array([plain_view(0, 0, SIDE, SIDE, SIDE, **changes)])


def test_missing__the_library_is_built_here() -> None:
    assert cpu.missing() is None


@pytest.mark.parametrize("kind", KINDS)
def test_render__whole_recipe_as_pil(kind: str, make_image: MakeImage) -> None:
    for sample in range(20):
        height, width = SIZES[sample % len(SIZES)]
        views = sample_views(sample_generator(0, 0, sample), RECIPE, height, width)
        assert max(view.mean() for view in differences(make_image(kind, height, width, sample), views)) <= LIMIT


@pytest.mark.parametrize("kind", KINDS)
def test_render__all_options_as_pil(kind: str, make_image: MakeImage) -> None:
    stained = []
    for sample in range(20):
        height, width = SIZES[sample % len(SIZES)]
        views = sample_views(sample_generator(1, 0, sample), ALL_ON, height, width)
        for view, difference in zip(views, differences(make_image(kind, height, width, sample), views), strict=True):
            if view["stain"]:
                stained.append(difference.mean())
            else:
                assert difference.mean() <= LIMIT
    assert len(stained) > 50
    assert max(stained) <= LIMIT + 0.01


SMALL = (0.0, 1e-3, 0.3, 0.77, 1.0, 1.21, 1.9, 7.5)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("flip", (1,)),
        ("vertical_flip", (1,)),
        ("turns", (1, 2, 3)),
        ("brightness", SMALL),
        ("contrast", SMALL),
        ("saturation", SMALL),
        ("hue", (-0.5, -0.1, -0.03, 0.0, 0.05, 0.1, 0.5)),
        ("grey", (1,)),
        ("blur", (1e-6, 0.1, 0.3, 0.9, 1.41, 1.42, 2.0, 2.44, 2.46, 5.0, MAX_BLUR)),
        ("solarize", (255, 128, 1, 0)),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_render__one_operation_as_pil(name: str, values: Sequence[float], kind: str, make_image: MakeImage) -> None:
    image = make_image(kind, SIDE, SIDE, 1)
    plain = rendered(cpu.render, image, of_side())[0]
    np.testing.assert_array_equal(plain, image.transpose(2, 0, 1))
    for value in values:
        assert differences(image, of_side(**{name: value}))[0].max() == 0, value
    assert np.any(rendered(cpu.render, image, of_side(**{name: values[-1]}))[0] != plain)


def test_render__hue_of_every_colour_as_pil() -> None:
    levels = np.arange(256, dtype=np.uint8)
    for red in range(0, 256, 15):
        image = np.stack(np.broadcast_arrays(np.uint8(red), levels[:, None], levels), axis=-1)
        views = np.array([plain_view(0, 0, 256, 256, 256, hue=hue) for hue in (0.0, -0.37)])
        assert max(difference.max() for difference in differences(np.ascontiguousarray(image), views)) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_render__stain_as_the_reference(kind: str, make_image: MakeImage) -> None:
    image, random = make_image(kind, SIDE, SIDE, 3), np.random.default_rng(0)
    for strength in (0.05, 0.2, 1.0):
        factors, shifts = 1 + strength * random.uniform(-1, 1, 3), strength * random.uniform(-1, 1, 3)
        difference = differences(image, of_side(stain=1, stain_map=stain_maps(factors, shifts)))[0]
        assert difference.max() <= 1
        assert np.count_nonzero(difference) <= 0.001 * difference.size
    for everywhere in (3.0, -3.0, 50.0, -50.0):  # optical densities far outside of those of images
        assert differences(image, of_side(stain=1, stain_map=np.full((3, 4), everywhere)))[0].max() <= 1


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1), (0, 3, 1, 2)])
@pytest.mark.parametrize("grey", [0, 1])
@pytest.mark.parametrize("blur", [0.0, 1.7])
def test_render__order_of_jitter_as_pil(order: tuple[int, ...], grey: int, blur: float, make_image: MakeImage) -> None:
    factors = {"brightness": 1.4, "contrast": 1.35, "saturation": 0.8, "hue": 0.09}
    views = of_side(**factors, order=order, grey=grey, blur=blur, solarize=100)
    assert differences(make_image("photo", SIDE, SIDE, 1), views)[0].max() == 0


@pytest.mark.parametrize("size", [1, 5, 16, 33, 224])
@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (1, 7), (9, 1), (5, 9), (15, 17), (16, 16), (60, 70), (400, 11), (11, 400), (400, 399), (301, 200)],
)
def test_render__resize_as_pil(height: int, width: int, size: int, make_image: MakeImage) -> None:
    image = make_image("noise", 400, 400, 0)
    top, left = 400 - height, 400 - width
    turned: dict[str, Any] = {"turns": 1, "flip": 1}
    views = np.array([plain_view(top, left, height, width, size, **changes) for changes in ({}, turned)])
    assert max(difference.mean() for difference in differences(image, views)) <= LIMIT


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("vertical_flip", [0, 1])
@pytest.mark.parametrize(("height", "width"), [(20, 60), (60, 20)])
def test_render__flips_and_turns_as_pil(
    height: int, width: int, turns: int, flip: int, vertical_flip: int, make_image: MakeImage
) -> None:
    changes = {"turns": turns, "flip": flip, "vertical_flip": vertical_flip, "blur": 1.0}
    image = make_image("photo", height, width, 0)
    views = np.array([plain_view(0, 0, height, width, 33, **changes)])
    assert differences(image, views)[0].mean() <= LIMIT


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (7, 1), (13, 300)])
def test_render__whole_recipe_of_odd_images_as_pil(height: int, width: int, make_image: MakeImage) -> None:
    views = sample_views(sample_generator(0, 0, 0), RECIPE, height, width)
    assert max(view.mean() for view in differences(make_image("noise", height, width, 0), views)) <= LIMIT


def test_render__image_of_any_strides(make_image: MakeImage) -> None:
    whole = make_image("photo", 200, 200, 0)
    views = sample_views(sample_generator(0, 0, 0), RECIPE, 90, 80)
    for part in (whole[10:100, 20:100], whole[10:100, 100:20:-1], whole[190:10:-2, 20:100]):
        expected = rendered(cpu.render, np.ascontiguousarray(part), views)
        for found, other in zip(rendered(cpu.render, part, views), expected, strict=True):
            np.testing.assert_array_equal(found, other)


def test_render__records_of_any_strides(make_image: MakeImage) -> None:
    image = make_image("photo", 100, 100, 0)
    views = sample_views(sample_generator(0, 0, 0), RECIPE, 100, 100)
    expected = rendered(cpu.render, image, views)
    for found, other in zip(rendered(cpu.render, image, views[::-3]), expected[::-3], strict=True):
        np.testing.assert_array_equal(found, other)


def cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x = np.abs(x)
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))


def weights(start: float, length: float, inputs: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.float64]:
    """[size, inputs]: antialiased cubic interpolation, from its definition."""
    scale = length / size
    centres = start + (np.arange(size) + 0.5) * scale
    found = cubic((inputs + 0.5 - centres[:, None]) / max(scale, 1))
    shares: npt.NDArray[np.float64] = found / found.sum(axis=1, keepdims=True)
    return shares


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("box", [(3, 5, 333, 501), (0, 0, 400, 601), (13, 100, 387, 33), (8, 16, 320, 320)])
def test_render__box_of_a_reduced_image(reduction: int, box: tuple[int, int, int, int], make_image: MakeImage) -> None:
    image = make_image("smooth", -(-400 // reduction), -(-601 // reduction), 5)
    sizes = [(start / reduction, length / reduction) for start, length in ((box[0], box[2]), (box[1], box[3]))]
    ranges = [np.arange(int(start), int(np.ceil(start + length))) for start, length in sizes]
    size = 40
    rows, columns = (weights(*edges, inputs, size) for edges, inputs in zip(sizes, ranges, strict=True))
    exact = np.einsum("yi,xj,ijc->cyx", rows, columns, image[np.ix_(*ranges)].astype(float))
    view = np.array([plain_view(*box, size)])
    found = rendered(cpu.render, image, view, reduction=reduction)[0]
    assert np.abs(found - np.clip(exact, 0, 255)).max() <= 1.2  # two roundings
    ready = np.ascontiguousarray(found.transpose(1, 2, 0))
    view["brightness"], view["jitter"], view["flip"] = 0.7, 1, 1
    changed = np.array([plain_view(0, 0, size, size, size, brightness=0.7, flip=1)])
    expected = rendered(pil.render, ready, changed)
    np.testing.assert_array_equal(rendered(cpu.render, image, view, reduction=reduction), expected)


def test_render__writes_nothing_but_the_outs(make_image: MakeImage) -> None:
    image = make_image("photo", 256, 256, 0)
    image.flags.writeable = False
    recipe = patch_recipe(
        CropsConfig(global_=GlobalCropsConfig(size=47), local=LocalCropsConfig(size=5), quarter_turns=True)
    )
    for sample in range(5):
        views = sample_views(sample_generator(0, 0, sample), recipe, 256, 256)
        expected = rendered(cpu.render, image, views)
        memory = [np.full((3, 3, size, size), 77, np.uint8) for size in views["size"].tolist()]
        cpu.render(image, views, [batch[1] for batch in memory])
        for batch, alone in zip(memory, expected, strict=True):
            np.testing.assert_array_equal(batch[1], alone)
            assert np.all(batch[0] == 77)
            assert np.all(batch[2] == 77)


def test_render__same_bytes_whatever_came_before(make_image: MakeImage) -> None:
    images = [make_image("photo", 256 - 7 * seed, 200 + seed, seed) for seed in range(4)]
    views = [sample_views(sample_generator(0, 0, seed), ALL_ON, *images[seed].shape[:2]) for seed in range(4)]
    pairs = [(image, records[i : i + 1]) for image, records in zip(images, views, strict=True) for i in range(10)]

    def render_all(order: Sequence[int]) -> dict[int, bytes]:
        return {index: rendered(cpu.render, *pairs[index], fill=index)[0].tobytes() for index in order}

    expected = render_all(range(len(pairs)))
    assert render_all(range(len(pairs))[::-1]) == expected
    found: list[dict[int, bytes]] = []
    threads = [threading.Thread(target=lambda: found.append(render_all(range(len(pairs))))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3


@pytest.mark.parametrize(
    "out",
    [
        np.empty((SIDE, SIDE), np.uint8),
        np.empty((SIDE, SIDE, 3), np.uint8),
        np.empty((3, SIDE, SIDE + 1), np.uint8),
        np.empty((3, SIDE, SIDE), np.int8),
        np.empty((3, SIDE, 2 * SIDE), np.uint8)[:, :, ::2],
        np.empty((SIDE, SIDE, 3), np.uint8).transpose(2, 0, 1),
        np.frombuffer(bytes(3 * SIDE * SIDE), np.uint8).reshape(3, SIDE, SIDE),
    ],
)
def test_render__refuses_other_memory(out: Any) -> None:
    with pytest.raises(ValueError, match=rf"expected writeable C-contiguous uint8 \[3, {SIDE}, {SIDE}\]"):
        cpu.render(np.zeros((SIDE, SIDE, 3), np.uint8), of_side(), [out])


@pytest.mark.parametrize(
    "image",
    [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8)],
)
def test_render__refuses_other_images(image: Any) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\]"):
        cpu.render(image, np.array([plain_view(0, 0, 1, 1, 1)]), [np.empty((3, 1, 1), np.uint8)])


@pytest.mark.parametrize(
    "changes",
    [
        {"top": 1},
        {"left": -1},
        {"height": 0},
        {"width": SIDE + 1},
        {"height": 2**31 - 1, "top": 2},
        {"blur": MAX_BLUR + 1},
        {"blur": float("nan")},
        {"blur": -float("nan")},
        {"blur": -1.0},
        {"blur": -1e30},
        {"order": (0, 1, 2, 4)},
        {"order": (-1, 0, 1, 2)},
        {"order": (0, 1, 1, 2)},
        {"brightness": float("nan")},
        {"contrast": float("inf")},
        {"saturation": -float("inf")},
        {"hue": float("nan")},
        {"hue": 0.6},
        {"stain": 1, "stain_map": float("nan")},
    ],
)
def test_render__refuses_records_of_another_image(changes: dict[str, Any]) -> None:
    views = np.concatenate([of_side(), of_side(jitter=1)])
    for name, value in changes.items():
        views[name][1] = value
    outs = [np.full((3, SIDE, SIDE), 5, np.uint8) for _ in views]
    with pytest.raises(ValueError, match=f"^view 1 cannot be rendered from an image of {SIDE} × {SIDE} px"):
        cpu.render(np.zeros((SIDE, SIDE, 3), np.uint8), views, outs)
    assert np.all(np.array(outs) == 5)


@pytest.mark.parametrize("reduction", [0, -1, 3, 16, 2**32 + 1])
def test_render__refuses_other_reductions(reduction: int) -> None:
    with pytest.raises(ValueError, match=f"^reduction is {reduction}, expected one of 1, 2, 4, 8$"):
        cpu.render(
            np.zeros((1, 1, 3), np.uint8),
            np.array([plain_view(0, 0, 1, 1, 1)]),
            [np.empty((3, 1, 1), np.uint8)],
            reduction,
        )


def test_render__same_bytes_for_any_processor(make_image: MakeImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those without vectors, with AVX2 and with AVX-512, as far as this one can run what is made for them."""
    random = np.random.default_rng(0)
    sizes = [*SIZES, (1, 1), (3, 500), (300, 5), *random.integers(1, 200, (12, 2)).tolist()]
    for sample, (height, width) in enumerate(sizes):
        of_global, of_local = random.integers(1, 240), random.integers(1, 40)
        recipe = patch_recipe(
            dataclasses.replace(
                CROPS_ALL_ON,
                global_=GlobalCropsConfig(size=int(of_global), scale=[0.01, 1.0], solarize=[0.3]),
                local=LocalCropsConfig(count=3, size=int(of_local)),
            )
        )
        reduction = (1, 2, 4, 8)[sample % 4]
        views = sample_views(sample_generator(0, 0, sample), recipe, height, width)
        image = make_image("photo", -(-height // reduction), -(-width // reduction), sample)
        found = set()
        for build in cpu._load()[0]:
            monkeypatch.setattr(cpu, "_fastest", lambda build=build: build)
            found.add(b"".join(view.tobytes() for view in rendered(cpu.render, image, views, reduction=reduction)))
        assert len(found) == 1


@pytest.fixture
def fresh_library() -> Iterator[None]:
    """The library is looked for anew, in the test and after it."""
    cpu._load.cache_clear()
    cpu._fastest.cache_clear()
    yield
    cpu._load.cache_clear()
    cpu._fastest.cache_clear()


@pytest.mark.usefixtures("fresh_library")
def test_render__without_the_library(
    make_image: MakeImage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = make_image("photo", 100, 120, 0)
    views = sample_views(sample_generator(0, 0, 0), RECIPE, 100, 120)
    reduced = sample_views(sample_generator(0, 0, 0), RECIPE, 397, 480)
    expected = [*rendered(pil.render, image, views), *rendered(cpu.render, image, reduced, reduction=4)]
    cpu._load.cache_clear()
    cpu._fastest.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with caplog.at_level(logging.WARNING):
        found = [*rendered(cpu.render, image, views), *rendered(cpu.render, image, reduced, reduction=4)]
    for view, other in zip(found, expected, strict=True):
        assert np.abs(view.astype(int) - other).mean() <= LIMIT
    assert [record.getMessage() for record in caplog.records] == [
        "the C library of dinowds.crops is not built: install a C compiler (gcc), then run `pip install -e .`; "
        "until then crops are made by Pillow, at a tenth of the speed"
    ]


@pytest.mark.usefixtures("fresh_library")
@pytest.mark.parametrize(("name", "value"), [("VERSION", cpu.VERSION + 1), ("LAYOUT", cpu.LAYOUT[::-1])])
def test_missing__library_of_another_version(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, name, value)
    reason = cpu.missing()
    assert reason is not None
    assert "another version" in reason
    assert reason.endswith("run `pip install -e .` again")


@pytest.mark.usefixtures("fresh_library")
def test_missing__file_that_is_no_library(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_kernels.so").write_bytes(b"text")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: SimpleNamespace(origin=str(tmp_path / "_kernels.so")))
    reason = cpu.missing()
    assert reason is not None
    assert "cannot be loaded" in reason
