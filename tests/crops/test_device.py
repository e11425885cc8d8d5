from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import functional as F

from dinowds.config import CropsConfig, GlobalCropsConfig, LocalCropsConfig
from dinowds.crops import device, pil, tensors
from dinowds.crops.recipe import Recipe, Views, patch_recipe, plain_view, sample_batch

Pixels: TypeAlias = NDArray[np.uint8]
MakeImage: TypeAlias = Callable[[str, int, int, int], Pixels]

CPU = torch.device("cpu")
DEFAULT = patch_recipe(CropsConfig())
EVERYTHING = patch_recipe(
    CropsConfig(
        global_=GlobalCropsConfig(count=3, size=101, blur=[0.7], solarize=[0.5, 0.2]),
        local=LocalCropsConfig(count=5, size=67, inside_global=True),
        vertical_flip=0.5,
        quarter_turns=True,
        stain=0.8,
        stain_strength=0.2,
        blur_radius=[0.1, 5.0],
    )
)
SMALL = patch_recipe(
    CropsConfig(
        global_=GlobalCropsConfig(size=24, solarize=[0.5]),
        local=LocalCropsConfig(count=3, size=12),
        vertical_flip=0.5,
        quarter_turns=True,
        stain=0.5,
    )
)
SIZES = ((256, 256), (200, 333), (40, 60), (255, 129), (97, 224), (256, 256), (1, 1), (3, 90))
SMALL_SIZES = ((48, 48), (48, 48), (40, 56), (48, 48), (20, 30), (7, 5), (1, 1), (48, 48), (90, 13))
WHOLE = partial(plain_view, 0, 0, 224, 224, 224)


def batch_of(images: Sequence[Pixels]) -> tuple[Tensor, list[tuple[int, int]]]:
    pixels = np.concatenate([image.reshape(-1) for image in images])
    return torch.from_numpy(pixels), [(image.shape[0], image.shape[1]) for image in images]


def views_of(recipe: Recipe, shapes: Sequence[tuple[int, int]]) -> Views:
    count = len(shapes)
    return sample_batch(0, [0] * count, range(count), recipe, [h for h, _ in shapes], [w for _, w in shapes])


def render_batch(
    recipe: Recipe, images: Sequence[Pixels], views: Views, reductions: Sequence[int] | None = None, **options: Any
) -> list[list[Pixels]]:
    """[image][view] uint8 [3, S, S]."""
    pixels, shapes = batch_of(images)
    renderer = device.DeviceRenderer(recipe, CPU, **options)
    rendered = renderer(pixels, shapes, views, reductions or [1] * len(images))
    assert list(rendered) == [output.name for output in recipe.outputs]
    for output in recipe.outputs:
        assert rendered[output.name].dtype == torch.uint8
        assert rendered[output.name].shape == (output.count, len(images), 3, output.size, output.size)
    return [
        [view.numpy() for output in recipe.outputs for view in rendered[output.name][:, image]]
        for image in range(len(images))
    ]


def with_pil(image: Pixels, views: Views) -> list[Pixels]:
    outs = [np.empty((3, view["size"], view["size"]), np.uint8) for view in views]
    pil.render(image, views, outs)
    return outs


def difference(one: Pixels, other: Pixels) -> float:
    """Mean absolute difference, grey levels."""
    return float(np.abs(one.astype(int) - other).mean())


def assert_same(one: list[list[Pixels]], other: list[list[Pixels]]) -> None:
    for these, those in zip(one, other, strict=True):
        for this, that in zip(these, those, strict=True):
            np.testing.assert_array_equal(this, that)


@pytest.mark.parametrize("kind", ["photo", "smooth", "noise"])
@pytest.mark.parametrize("recipe", [DEFAULT, EVERYTHING], ids=["default", "everything"])
def test_renderer__whole_recipe_as_pil(recipe: Recipe, kind: str, make_image: MakeImage) -> None:
    images = [make_image(kind, *SIZES[sample % len(SIZES)], sample) for sample in range(16)]
    views = views_of(recipe, batch_of(images)[1])
    rendered = render_batch(recipe, images, views)
    differences = [
        difference(view, expected)
        for image, records, found in zip(images, views, rendered, strict=True)
        for view, expected in zip(found, with_pil(image, records), strict=True)
    ]
    assert len(differences) == 16 * recipe.num_views
    assert max(differences) <= 0.8
    assert np.mean(differences) <= 0.2


@pytest.mark.parametrize("kind", ["photo", "smooth", "noise"])
@pytest.mark.parametrize(
    ("name", "views", "limit"),
    [
        ("nothing", [WHOLE()], 0.0),
        ("flips", [WHOLE(flip=flip, vertical_flip=vertical) for flip in (0, 1) for vertical in (0, 1)], 0.0),
        ("turns", [WHOLE(turns=turns, flip=flip) for turns in (0, 1, 2, 3) for flip in (0, 1)], 0.0),
        ("brightness", [WHOLE(brightness=factor) for factor in (0.0, 0.61, 0.87, 1.0, 1.13, 1.39, 5.3)], 0.04),
        ("contrast", [WHOLE(contrast=factor) for factor in (0.0, 0.61, 0.87, 1.0, 1.13, 1.39)], 0.04),
        ("saturation", [WHOLE(saturation=factor) for factor in (0.0, 0.81, 0.93, 1.0, 1.11, 1.19)], 0.04),
        ("hue", [WHOLE(hue=shift) for shift in (-0.5, -0.1, -0.03, 0.0, 0.05, 0.1, 0.5)], 0.02),
        ("grey", [WHOLE(grey=1)], 0.0),
        ("small blur", [WHOLE(blur=radius) for radius in (0.1, 0.2, 0.3, 0.5, 0.9, 1.2, 1.41)], 0.05),
        ("blur", [WHOLE(blur=radius) for radius in (1.42, 1.7, 2.0, 3.1, 8.0, 32.0)], 0.5),
        ("solarize", [WHOLE(solarize=threshold) for threshold in (0, 1, 128, 255, 256)], 0.0),
    ],
)
def test_render__one_operation_as_pil(
    name: str, views: list[Any], limit: float, kind: str, make_image: MakeImage
) -> None:
    records = np.array(views)
    for seed in range(2):
        image = make_image(kind, 224, 224, seed)
        outs = [np.empty((3, 224, 224), np.uint8) for _ in views]
        device.render(image, records, outs)
        for view, out, expected in zip(views, outs, with_pil(image, records), strict=True):
            assert difference(out, expected) <= limit, (name, view)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1)])
def test_render__order_of_jitter_as_pil(order: tuple[int, ...], make_image: MakeImage) -> None:
    image = make_image("photo", 224, 224, 1)
    views = np.array([WHOLE(brightness=1.4, contrast=1.35, saturation=1.2, hue=0.09, order=order)])
    outs = [np.empty((3, 224, 224), np.uint8)]
    device.render(image, views, outs)
    assert difference(outs[0], with_pil(image, views)[0]) <= 0.1


def test_render__stain_as_pil(make_image: MakeImage) -> None:
    image = make_image("photo", 224, 224, 3)
    maps = np.random.default_rng(0).normal(np.eye(3, 4), 0.15, (4, 3, 4))
    views = np.array([WHOLE(stain=1, stain_map=stain_map) for stain_map in maps])
    outs = [np.empty((3, 224, 224), np.uint8) for _ in views]
    device.render(image, views, outs)
    for out, expected in zip(outs, with_pil(image, views), strict=True):
        assert difference(out, expected) <= 1e-3
        assert difference(out, image.transpose(2, 0, 1)) > 1


def limit_of_resize(height: float, width: float) -> float:
    """Of tall boxes Pillow resizes the columns first, so other numbers are rounded on the way."""
    return 0.1 if height <= width else 0.4


@pytest.mark.parametrize("flip", [0, 1])
def test_render__resize_as_pil(flip: int, make_image: MakeImage) -> None:
    boxes = ((200, 180, 224), (256, 256, 96), (60, 70, 96), (1, 1, 8), (1, 7, 8), (9, 1, 5), (5, 9, 1), (250, 3, 7))
    for kind in ("photo", "noise"):
        image = make_image(kind, 270, 270, 0)
        views = np.array([plain_view(3, 5, height, width, size, flip=flip) for height, width, size in boxes])
        outs = [np.empty((3, size, size), np.uint8) for *_, size in boxes]
        device.render(image, views, outs)
        for out, expected, box in zip(outs, with_pil(image, views), boxes, strict=True):
            assert difference(out, expected) <= limit_of_resize(*box[:2]), (kind, box)


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_render__reduced_image_as_pillow(reduction: int, make_image: MakeImage) -> None:
    """Pillow takes a box with fractions, too."""
    image = make_image("noise", 66, 83, 0)
    boxes = [
        (0, 0, 64, 80),
        (3, 5, 201 // reduction, 97 // reduction),
        (1, 2, 60, 77),
        (66 * reduction - 33, 7, 33, 41),
    ]
    views = np.array([plain_view(*box, size) for box in boxes for size in (16, 96)])
    outs = [np.empty((3, view["size"], view["size"]), np.uint8) for view in views]
    device.render(image, views, outs, reduction)
    for view, out in zip(views, outs, strict=True):
        top, left, height, width = (int(view[name]) / reduction for name in ("top", "left", "height", "width"))
        first, last = (
            (int(np.floor(left)), int(np.floor(top))),
            (int(np.ceil(left + width)), int(np.ceil(top + height))),
        )
        box = (left - first[0], top - first[1], left - first[0] + width, top - first[1] + height)
        side = int(view["size"])
        whole = Image.fromarray(image).crop((*first, *last))
        expected = np.asarray(whole.resize((side, side), Image.Resampling.BICUBIC, box=box)).transpose(2, 0, 1)
        assert difference(out, expected) <= limit_of_resize(height, width), view


@pytest.mark.parametrize("level", [0, 1, 100, 127, 128, 254, 255])
def test_renderer__flat_grey_as_pil(level: int) -> None:
    images = [np.full((64, 80, 3), level, np.uint8)] * 4
    views = views_of(DEFAULT, [(64, 80)] * 4)
    for image, records, found in zip(images, views, render_batch(DEFAULT, images, views), strict=True):
        for out, expected in zip(found, with_pil(image, records), strict=True):
            assert difference(out, expected) <= 0.05


@pytest.mark.parametrize("bright", [0, 1, 2, 3, 4])
def test_render__mean_for_contrast_is_rounded_as_pillow_does(bright: int) -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    image.reshape(4, 3)[:bright] = 101
    views = np.array([plain_view(0, 0, 2, 2, 2, contrast=0.0)])
    outs = [np.empty((3, 2, 2), np.uint8)]
    device.render(image, views, outs)
    np.testing.assert_array_equal(outs, with_pil(image, views))
    assert np.all(outs[0] == (100 if bright < 2 else 101))


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.05])
def test_shift_hue__colours_as_pillow(shift: float) -> None:
    levels = np.arange(256)
    colours = (
        np.stack(np.meshgrid(levels, levels, levels[::15], indexing="ij"), -1).astype(np.uint8).reshape(256, -1, 3)
    )
    steps = torch.tensor([int(shift * 255) % 256], dtype=torch.int32)
    found = tensors.shift_hue(torch.from_numpy(colours).permute(2, 0, 1)[None], steps)[0]
    expected = np.asarray(F.adjust_hue(Image.fromarray(colours), shift)).transpose(2, 0, 1)
    assert difference(found.numpy(), expected) <= 0.01


def test_renderer__same_bytes_in_any_batch(make_image: MakeImage, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [make_image("noise", *size, sample) for sample, size in enumerate(SMALL_SIZES)]
    views = views_of(SMALL, SMALL_SIZES)
    together = render_batch(SMALL, images, views)
    order = np.random.default_rng(0).permutation(len(images))
    shuffled = render_batch(SMALL, [images[place] for place in order], views[order])
    assert_same(shuffled, [together[place] for place in order])
    for place, image in enumerate(images):
        assert_same(render_batch(SMALL, [image], views[[place]]), [together[place]])
        outs = [np.empty_like(out) for out in together[place]]
        device.render(image, views[place], outs)
        assert_same([outs], [together[place]])
    for name, value in (("PIECE_IMAGES", 2), ("PIECE_BYTES", 1), ("MAX_PADDING", 10**6), ("ALIGNMENT", 32)):
        with monkeypatch.context() as changed:
            changed.setattr(device, name, value)
            assert_same(render_batch(SMALL, images, views), together)


def test_renderer__same_bytes_beside_a_much_larger_image(make_image: MakeImage) -> None:
    small, large = make_image("photo", 48, 48, 0), make_image("noise", 900, 1200, 1)
    shapes = [(48, 48), (900, 1200)]
    views = views_of(SMALL, shapes)
    alone = render_batch(SMALL, [small], views[:1])
    assert_same(render_batch(SMALL, [small, large], views)[:1], alone)


def test_renderer__reduction_of_each_image(make_image: MakeImage) -> None:
    images = [make_image("photo", 32, 40, sample) for sample in range(3)]
    shapes = [(32, 40), (64, 80), (128, 160)]
    views = views_of(SMALL, shapes)
    together = render_batch(SMALL, images, views, [1, 2, 4])
    for place, (image, reduction) in enumerate(zip(images, (1, 2, 4), strict=True)):
        outs = [np.empty_like(out) for out in together[place]]
        device.render(image, views[place], outs, reduction)
        assert_same([outs], [together[place]])


def test_renderer__does_not_depend_on_global_precision(make_image: MakeImage) -> None:
    images = [make_image("noise", 48, 48, 0)]
    views = views_of(SMALL, [(48, 48)])
    matmul = torch.backends.cuda.matmul
    expected = render_batch(SMALL, images, views)
    flags, precision = matmul.allow_fp16_reduced_precision_reduction, torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(render_batch(SMALL, images, views), expected)
    finally:
        torch.set_float32_matmul_precision(precision)
    assert matmul.allow_fp16_reduced_precision_reduction == flags


def test_exact_products__sets_flags_and_puts_them_back() -> None:
    matmul = torch.backends.cuda.matmul
    names = ("allow_fp16_reduced_precision_reduction", "allow_fp16_accumulation")
    before = [getattr(matmul, name) for name in names]
    try:
        for value in (False, True):
            for name in names:
                setattr(matmul, name, value)
            with tensors.exact_products():
                assert not any(getattr(matmul, name) for name in names)
            assert all(getattr(matmul, name) == value for name in names)
    finally:
        for name, flag in zip(names, before, strict=True):
            setattr(matmul, name, flag)


def test_renderer__multiplies_with_these_flags(make_image: MakeImage, monkeypatch: pytest.MonkeyPatch) -> None:
    matmul, product = torch.backends.cuda.matmul, tensors.bmm
    flags = []

    def recorded(a: Tensor, b: Tensor) -> Tensor:
        flags.append((matmul.allow_fp16_reduced_precision_reduction, matmul.allow_fp16_accumulation))
        return product(a, b)

    monkeypatch.setattr(tensors, "bmm", recorded)
    render_batch(SMALL, [make_image("noise", 48, 48, 0)], views_of(SMALL, [(48, 48)]))
    assert set(flags) == {(False, False)}


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what makes the host wait for the device, or shapes depend on what it computes."""

    FORBIDDEN = ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "unique", "equal")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies = 0
        """Copies from one device to another."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        assert not name.startswith(self.FORBIDDEN), name
        if name.startswith("index") and isinstance(args[1], (list, tuple)):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), name
        result = func(*args, **kwargs)
        if name == "copy_":
            assert args[0].device == args[1].device
        if name == "_to_copy" and result.device != args[0].device:
            assert result.device.type == "cuda", "read back"
            assert kwargs["non_blocking"]
            self.copies += 1
        return result


def test_renderer__never_waits_for_the_device(make_image: MakeImage) -> None:
    images = [make_image("noise", *size, sample) for sample, size in enumerate(SMALL_SIZES)]
    renderer = device.DeviceRenderer(SMALL, CPU)
    pixels, shapes = batch_of(images)
    with NoWaiting():
        renderer(pixels, shapes, views_of(SMALL, shapes), [1] * len(images))


def test_renderer__two_copies_to_the_device_and_none_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors refuse operations between devices, and values that are read back."""
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)  # type: ignore[func-returns-value]
    cuda = torch.device("cuda", 0)
    views = views_of(SMALL, SMALL_SIZES)
    with FakeTensorMode(allow_non_fake_inputs=True):
        renderer = device.DeviceRenderer(SMALL, cuda, compile=False)
        pixels = torch.zeros(sum(3 * height * width for height, width in SMALL_SIZES), dtype=torch.uint8)
        with NoWaiting() as counted:
            rendered = renderer(pixels, SMALL_SIZES, views, [1] * len(SMALL_SIZES))
        assert counted.copies == 2
        assert len(pinned) == 1  # what is uploaded beside the pixels
        for output in SMALL.outputs:
            assert rendered[output.name].device == cuda
            assert rendered[output.name].dtype == torch.uint8
            assert rendered[output.name].shape == (output.count, len(SMALL_SIZES), 3, output.size, output.size)


def test_renderer__compiles_without_graph_breaks(make_image: MakeImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiler's front only; its kernels take a minute to build."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", partial(compiler, fullgraph=True, backend="eager"))
    images = [make_image("noise", *size, sample) for sample, size in enumerate(SMALL_SIZES[:5])]
    views = views_of(SMALL, SMALL_SIZES[:5])
    assert_same(render_batch(SMALL, images, views, compile=True), render_batch(SMALL, images, views, compile=False))


def test_renderer__compiles_for_a_few_shapes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later batches, of other sizes and numbers of views, need nothing new: each time would take a minute."""
    compiler, graphs = torch.compile, []

    def record(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(compiler, fullgraph=True, backend=record))
    torch._dynamo.reset()
    renderer = device.DeviceRenderer(SMALL, CPU, compile=True)
    random = np.random.default_rng(0)
    counts = []
    for count in (4, 1, 9, 2, 7, 3, 5, 8, 6, 10):
        shapes = [(int(height), int(width)) for height, width in random.integers(8, 90, (count, 2))]
        pixels = torch.zeros(sum(3 * height * width for height, width in shapes), dtype=torch.uint8)
        renderer(pixels, shapes, views_of(SMALL, shapes), [1] * count)
        counts.append(len(graphs))
    assert 0 < counts[0] <= counts[4] <= 25
    assert counts[4] == counts[-1]


def test_renderer__works_where_nothing_can_be_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_function: Any, **_options: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    monkeypatch.setattr(torch, "compile", fail)
    assert not device._can_compile(CPU)
    (record,) = caplog.records
    assert "(Failed to find C compiler.)" in record.message
    assert "\n" not in record.message


def test_bicubic_taps__exact_and_the_same_whatever_the_padding() -> None:
    random = np.random.default_rng(0)
    full = random.integers(1, 400, 200)
    low = random.integers(0, full)
    extent = random.integers(1, full - low + 1) / random.choice([1, 2, 4], 200)
    edge = low + random.random(200) / 4
    high = np.minimum(np.ceil(edge + extent), full)
    box = torch.from_numpy(np.stack([edge, extent, low, high, random.integers(0, 2, 200)]))
    size = 24
    taps = min(int(4 * max(1, extent.max() / size)) + 2, 400)
    dense = []
    for more, length in ((0, 400), (5, 437)):
        places, weights = tensors.bicubic_taps(box, size, taps + more, length)
        units = weights.double() * 8 * tensors.UNITS
        assert torch.equal(units, units.round())
        assert torch.equal(units.sum(dim=2), torch.full((200, size), 8.0 * tensors.UNITS, dtype=torch.float64))
        dense.append(torch.zeros(200, size, 437, dtype=torch.float64).scatter_(2, places, units))
        for lowest, highest, matrix in zip(low, high, dense[-1], strict=True):
            assert not matrix[:, :lowest].any()
            assert not matrix[:, int(highest) :].any()
    assert torch.equal(*dense)


@pytest.mark.parametrize("shrink", [0.4, 1.1, 2.1, 4.5, 9, 30])
def test_bicubic_taps__eleven_bits_of_the_largest(shrink: float) -> None:
    size, length = 5, 200
    extent = shrink * size
    box = torch.tensor([[7.25], [extent], [7], [np.ceil(7.25 + extent)], [0]], dtype=torch.float64)
    places, weights = tensors.bicubic_taps(box, size, int(4 * max(1, shrink)) + 2, length)
    found = torch.zeros(size, length, dtype=torch.float64).scatter_(1, places[0], weights[0].double()).numpy()
    for row, pixel in zip(found, range(size), strict=True):
        distance = np.abs(np.arange(length) + 0.5 - (7.25 + (pixel + 0.5) * shrink)) / max(1, shrink)
        near, far = (1.5 * distance - 2.5) * distance**2 + 1, ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
        expected = np.where(distance < 1, near, np.where(distance < 2, far, 0))
        expected[:7] = expected[int(np.ceil(7.25 + extent)) :] = 0
        expected /= expected.sum()
        np.testing.assert_allclose(row, expected, rtol=0, atol=max(expected.max() / 900, 2**-14))


def test_steps__factors_are_short() -> None:
    records = views_of(DEFAULT, [(256, 256)] * 8).reshape(-1)
    factors = np.concatenate([numbers[1] for name, _, numbers in device._steps(records) if name == "blend"])
    assert len(np.unique(factors)) > 100
    assert not np.any(factors.view(np.uint32) & 0xFF)


def test_short__products_with_levels_are_exact() -> None:
    factors = np.random.default_rng(0).uniform(0, 2, 1000).astype(np.float32)
    short = device._short(factors)
    np.testing.assert_allclose(short, factors, rtol=2**-16)
    levels = np.arange(256, dtype=np.float32)[:, None]
    np.testing.assert_array_equal((levels * short).astype(np.float64), levels.astype(np.float64) * short)


@pytest.mark.parametrize("size", [1, 2, 5, 30])
def test_blur_matrices__multiples_that_sum_to_one(size: int) -> None:
    matrices = device._blur_matrices(size, 3).double() * tensors.UNITS
    assert len(matrices) == 3 * device.RADII_PER_OCTAVE + 1
    assert torch.equal(matrices, matrices.round())
    assert bool((matrices >= 0).all())
    assert torch.equal(matrices.sum(dim=2), torch.full(matrices.shape[:2], float(tensors.UNITS), dtype=torch.float64))


def test_pieces__each_image_once_within_the_limits() -> None:
    random = np.random.default_rng(0)
    sizes = np.concatenate([random.integers(1, 600, (300, 2)), np.full((300, 2), 256), [[9000, 7000]]])
    pieces = device._pieces(sizes, DEFAULT.outputs)
    np.testing.assert_array_equal(np.sort(np.concatenate(pieces)), np.arange(len(sizes)))
    for piece in pieces:
        largest = sizes[piece].max(axis=0)
        assert len(piece) <= device.PIECE_IMAGES
        assert len(piece) * largest.prod() <= device.MAX_PADDING * sizes[piece].prod(axis=1).sum()
        memory = len(piece) * device._memory(int(largest[0]), int(largest[1]), DEFAULT.outputs)
        assert memory <= device.PIECE_BYTES or len(piece) == 1
    assert len(pieces) < 40


def test_renderer__empty_batch() -> None:
    views = views_of(SMALL, [(48, 48)])[:0]
    assert device.DeviceRenderer(SMALL, CPU)(torch.empty(0, dtype=torch.uint8), [], views, [])["local"].shape[1] == 0


def test_renderer__refuses_what_does_not_belong_together() -> None:
    renderer = device.DeviceRenderer(SMALL, CPU)
    pixels, shapes, views = torch.zeros(3 * 48 * 40, dtype=torch.uint8), [(48, 40)], views_of(SMALL, [(48, 40)])
    with pytest.raises(ValueError, match=r"views are \[1, 4\], expected \[1, 5\]"):
        renderer(pixels, shapes, views[:, 1:], [1])
    with pytest.raises(ValueError, match=r"pixels are torch.uint8 \[5759\], expected torch.uint8 \[5760\]"):
        renderer(pixels[1:], shapes, views, [1])
    views["top"], views["height"] = 20, 10
    with pytest.raises(ValueError, match="view 0 of image 0 reaches outside of its 24 × 80 px"):
        renderer(pixels[: 3 * 24 * 80], [(24, 80)], views, [1])
    views["left"][0, 2] = -1
    with pytest.raises(ValueError, match="view 2 of image 0 reaches outside of its 48 × 40 px"):
        renderer(pixels, shapes, views, [1])
    views["blur"], views["left"] = 9, 0
    with pytest.raises(ValueError, match=r"a blur of 9\.0 px is larger"):
        renderer(pixels, shapes, views, [1])
