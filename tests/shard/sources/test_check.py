"""Checks of payloads in files against the reference, which has each payload as bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import xxhash
from PIL import Image

from dinowds.data.decode import decode_image, decode_reduced
from dinowds.shard import kernels
from dinowds.shard.sources.check import (
    EXTENSIONS,
    REASONS,
    ChangedError,
    Checked,
    Checks,
    check_files,
    check_payload,
    check_ranges,
)
from dinowds.shard.sources.images import CUT_SHORT, DAMAGED, NOT_AN_IMAGE, OTHER_VALUES, TOO_LARGE
from tests.shard.sources.test_images import SAVES, save

MakeImage = Callable[..., bytes]
Check = Callable[[list[bytes], Checks], Checked]
COMMON = ("baseline", "progressive", "optimized", "exif", "restarts", "png")
VERIFY: tuple[Literal["header"], Literal["decode"]] = ("header", "decode")
HEADERS, ALL = Checks(), Checks("decode", True, True)


@pytest.fixture(params=["c", "python"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the C library, and without it."""
    if request.param == "python":
        monkeypatch.setattr(kernels, "_library", lambda: None)


@pytest.fixture(params=["ranges", "files"])
def check(request: pytest.FixtureRequest, tmp_path: Path) -> Check:
    """Check payloads that lie in one file, or in a file each."""

    def in_one(payloads: list[bytes], checks: Checks) -> Checked:
        path = tmp_path / "all"
        path.write_bytes(b"before" + b"\xff\xd9\xff".join(payloads) + b"\xff\xd9")
        sizes = np.array([len(payload) for payload in payloads], np.int64)
        places = np.cumsum([6, *(sizes[:-1] + 3)])
        with open(path, "rb") as file:
            return check_ranges(file.fileno(), places, sizes, checks)

    def in_files(payloads: list[bytes], checks: Checks) -> Checked:
        (tmp_path / "in").mkdir(exist_ok=True)
        names = [os.fsencode(f"in/{index}") for index in range(len(payloads))]
        for name, payload in zip(names, payloads, strict=True):
            (tmp_path / os.fsdecode(name)).write_bytes(payload)
        return check_files(tmp_path, names, np.array([len(payload) for payload in payloads], np.int64), checks)

    return in_one if request.param == "ranges" else in_files


def assert_as_reference(found: Checked, payloads: list[bytes], checks: Checks) -> None:
    rows = [check_payload(payload, checks) for payload in payloads]
    for name in ("reason", "ext", "width", "height"):
        expected = [getattr(row, name) for row in rows]
        different = np.flatnonzero(getattr(found, name) != expected)
        assert not len(different), (name, payloads[different[0]][:2000], rows[different[0]])
    if found.digest is not None:
        assert found.digest.tobytes() == b"".join(row.digest for row in rows)
    if found.white is not None:
        assert found.black is not None
        assert found.sharpness is not None
        together = np.stack([found.white, found.black, found.sharpness], axis=1)
        assert np.array_equal(together, np.array([row.statistics for row in rows], np.float32), equal_nan=True)


def changed_payloads(count: int) -> Iterator[bytes]:
    """Real images, cut anywhere and changed where their structure is."""
    random = np.random.default_rng(0)
    images = [save("RGB", 48, 40, save_as, seed) for seed, save_as in enumerate(COMMON)]
    images += [_with_segments(images[0], 3, 3000), _with_segments(images[1], 2, 60_000), save("L", 90, 90, "png")]
    for index in range(count):
        image = bytearray(images[index % len(images)])
        header = image.index(b"\xff\xda") + 14 if image[0] == 0xFF else len(image)
        for _ in range(int(random.integers(0, 4))):
            near = int(random.choice([64, 700, header, len(image)]))
            value = int(random.choice([0, 0xFF, 0xD9, 0xD8, 0xC0, 0xDA, 0xC4, 0x01, int(random.integers(256))]))
            image[int(random.integers(0, min(near, len(image))))] = value
        kind = random.integers(5)
        if kind == 0:
            del image[int(random.integers(0, len(image))) :]
        elif kind == 1:
            image += bytes(int(random.choice([1, 70, 4000, 9000])))
        elif kind == 2:
            at = int(random.integers(2, header))
            image[at:at] = bytes([int(random.choice([0, 0xFF]))]) * int(random.integers(1, 5))
        yield bytes(image)


def _with_segments(image: bytes, count: int, size: int) -> bytes:
    comment = b"\xff\xfe" + (size + 2).to_bytes(2, "big") + b"\xff\xd9" * (size // 2)
    return image[:2] + comment * count + image[2:]


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("digests", [False, True])
def test_check__changed_images_as_the_reference(check: Check, digests: bool) -> None:
    payloads = list(changed_payloads(1500))
    checks = Checks(digests=digests)
    found = check(payloads, checks)
    assert_as_reference(found, payloads, checks)
    assert set(found.reason.tolist()) == {REASONS.index(reason) for reason in ("", *REASONS[1:5])}


def test_check__jpeg_and_png_are_not_left_to_python(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    payloads = [save("RGB", 48, 40, save_as) for save_as in COMMON]
    monkeypatch.setattr("dinowds.shard.sources.check.check_payload", lambda *_: pytest.fail("read by Python"))
    assert check(payloads, Checks(digests=True)).width.tolist() == [48] * len(COMMON)


@pytest.mark.usefixtures("either")
def test_check__every_marker_and_every_cut(check: Check) -> None:
    image = save("RGB", 16, 16, "baseline")
    segment = b"\0\x0b\x08\0\x21\0\x22\3abc"
    payloads = [image[:2] + b"\xff" + bytes([marker]) + segment + image[2:] for marker in range(256)]
    payloads += [image[:length] + end for length in range(len(image)) for end in (b"", b"A", b"\xff")]
    assert_as_reference(check(payloads, HEADERS), payloads, HEADERS)


@pytest.mark.usefixtures("either")
def test_check__end_marker_wherever_it_lies(check: Check) -> None:
    image = save("RGB", 16, 16, "baseline")
    payloads = [image + bytes(count) for count in (*range(1010, 1035), *range(2035, 2060), *range(4085, 4105), 300_000)]
    payloads += [image[:-2] + bytes(count) for count in (0, 1, 4096, 300_000)]
    payloads += [image[:-1], image[:-2] + b"\xff" * 5000 + b"\xd9", image[:-2] + bytes(5000) + b"\xff"]
    for checks in (HEADERS, Checks(digests=True)):
        assert_as_reference(check(payloads, checks), payloads, checks)


@pytest.mark.usefixtures("either")
def test_check__every_format_and_every_reason(check: Check) -> None:
    float_tiff = io.BytesIO()
    Image.new("F", (4, 4)).save(float_tiff, "TIFF")
    huge = bytearray(save("RGB", 9, 9, "png"))
    huge[16:24] = (1 << 20).to_bytes(4, "big") * 2
    payloads = [save("RGB", 20 + index, 17, save_as) for index, save_as in enumerate(SAVES)]
    payloads += [b"", b"\xff\xd8", b"text" * 100, payloads[0][:99], payloads[0][:2] + b"\xff\xd9", bytes(huge)]
    payloads += [float_tiff.getvalue()]
    for checks in (HEADERS, Checks(digests=True), Checks("decode"), Checks(statistics=True), ALL):
        found = check(payloads, checks)
        assert_as_reference(found, payloads, checks)
        assert [EXTENSIONS[ext] for ext in found.ext[5:11]] == list(EXTENSIONS[1:7])
        reasons = [REASONS[reason] for reason in found.reason[11:]]
        assert reasons == [*[NOT_AN_IMAGE] * 3, CUT_SHORT, DAMAGED, TOO_LARGE, OTHER_VALUES]
    assert found.digest is not None
    assert found.digest[0].tobytes() == xxhash.xxh3_128_digest(payloads[0])
    assert len(check([], ALL).reason) == 0


@pytest.mark.usefixtures("either")
def test_check__decoding_finds_damage_inside(check: Check) -> None:
    jpeg, png = save("RGB", 64, 64, "baseline"), save("RGB", 64, 64, "png")
    damaged = [jpeg[: len(jpeg) // 2] + jpeg[-2:], png[:3000] + bytes(40) + png[3040:]]
    assert check(damaged, HEADERS).reason.tolist() == [0, 0]
    for checks in (Checks("decode"), Checks(statistics=True)):
        found = check([*damaged, jpeg, png], checks)
        assert found.reason.tolist() == [REASONS.index(DAMAGED)] * 2 + [0, 0]
        assert found.width.tolist() == [0, 0, 64, 64]


def test_check__statistics_are_of_the_image_or_of_a_reduced_one() -> None:
    pixels = np.zeros((1200, 1030, 3), np.uint8)
    pixels[:300] = 255
    pixels += np.random.default_rng(0).integers(0, 1, pixels.shape, dtype=np.uint8)
    for kind in ("JPEG", "PNG"):
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, kind, quality=95)
        payload = content.getvalue()
        rows = [check_payload(payload, Checks(verify, statistics=True)) for verify in VERIFY]
        assert rows[0] == rows[1]
        assert rows[0].statistics[:2] == pytest.approx((0.25, 0.75), abs=0.01)
        small = decode_reduced(payload, 4)[0] if kind == "JPEG" else np.asarray(Image.fromarray(pixels).reduce(4))
        assert rows[0].statistics == kernels.statistics(small)
    small = pixels[:511]
    content = io.BytesIO()
    Image.fromarray(small).save(content, "JPEG")
    expected = kernels.statistics(decode_image(content.getvalue()))
    assert check_payload(content.getvalue(), Checks(statistics=True)).statistics == expected


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("checks", [HEADERS, Checks(digests=True), ALL])
def test_check_ranges__file_that_became_shorter(tmp_path: Path, make_image: MakeImage, checks: Checks) -> None:
    payload = make_image(0)
    sizes = np.full(3, len(payload), np.int64)
    path = tmp_path / "all"
    for length in (3 * len(payload) - 1, 2 * len(payload), 2 * len(payload) + 5):
        path.write_bytes((3 * payload)[:length])
        with open(path, "rb") as file, pytest.raises(ChangedError) as caught:
            check_ranges(file.fileno(), np.arange(3) * len(payload), sizes, checks)
        assert caught.value.index == 2


@pytest.mark.usefixtures("either")
def test_check_ranges__file_that_becomes_shorter_meanwhile(
    tmp_path: Path, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one"
    path.write_bytes(make_image(0)[:-100])
    size = len(make_image(0))
    for checks in (HEADERS, Checks(digests=True), ALL):
        with open(path, "rb") as file, monkeypatch.context() as patch:
            patch.setattr(os, "fstat", lambda _: os.stat_result((0o100644, *[0] * 5, size, 0, 0, 0)))
            with pytest.raises(ChangedError):
                check_ranges(file.fileno(), np.zeros(1, np.int64), np.array([size]), checks)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("checks", [HEADERS, ALL])
def test_check_files__file_that_is_no_longer_what_was_listed(
    tmp_path: Path, make_image: MakeImage, checks: Checks
) -> None:
    payload = make_image(0)
    names = [b"0", b"1", b"2"]
    for name in names:
        (tmp_path / name.decode()).write_bytes(payload)
    sizes, file = np.full(3, len(payload), np.int64), tmp_path / "1"
    os.utime(file, ns=(10**18, 10**18))
    os.utime(tmp_path / "0", ns=(10**17, 10**17))
    os.utime(tmp_path / "2", ns=(10**17, 10**17))
    assert not check_files(tmp_path, names, sizes, checks, 10**18).reason.any()

    def assert_changed(newest_ns: int | None = None) -> None:
        with pytest.raises(ChangedError) as caught:
            check_files(tmp_path, names, sizes, checks, newest_ns)
        assert caught.value.index == 1

    assert_changed(10**18 - 1)
    file.write_bytes(payload + b"more")
    assert_changed()
    file.unlink()
    assert_changed()
    file.symlink_to("0")
    assert_changed()
    file.unlink()
    os.mkfifo(file)
    sizes[1] = 0
    assert_changed()
    file.unlink()
    file.mkdir()
    sizes[1] = file.stat().st_size
    assert_changed()


@pytest.mark.usefixtures("either")
def test_check__errors_of_the_system_pass_through(tmp_path: Path, make_image: MakeImage) -> None:
    (tmp_path / "a").write_bytes(make_image(0))
    sizes = np.array([len(make_image(0))])
    writing = os.open(tmp_path / "a", os.O_WRONLY)
    try:
        for checks in (HEADERS, ALL):
            with pytest.raises(OSError, match="Bad file descriptor"):
                check_ranges(writing, np.zeros(1, np.int64), sizes, checks)
    finally:
        os.close(writing)
    with pytest.raises(FileNotFoundError):
        check_files(tmp_path / "none", [b"a"], sizes, HEADERS)


@pytest.mark.usefixtures("either")
def test_check__large_payloads_that_do_not_begin_like_images_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"text")
    os.truncate(path, 1 << 40)
    sizes = np.array([path.stat().st_size])
    for checks in (HEADERS, ALL):
        with open(path, "rb") as file:
            found = check_ranges(file.fileno(), np.zeros(1, np.int64), sizes, checks)
        assert found.reason.tolist() == [REASONS.index(NOT_AN_IMAGE)]
    assert found.digest is not None
    assert not found.digest.any()
