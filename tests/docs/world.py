"""A small world in which the commands of the pages find what they name: sources, lists, datasets, runs, a bucket."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from dinowds.cli.main import run
from PIL import Image

from tests.reference_root import make_root
from tests.shard.sources.layouts.test_hs2p import write_slide
from tests.support import TINY_RUN, jpeg_patch, write_cohort
from tests.train.regions import TINY_REGION_RUN

PX = 256
COLUMNS, ROWS = 4, 5

SHRINK_PATCH = (
    *(value for value in TINY_RUN if not value.startswith(("student.patch_size=", "crops.", "optim.max_steps="))),
    "student.patch_size=16", "crops.global.size=32", "crops.local.size=16", "crops.local.count=1", "optim.max_steps=1",
)  # fmt: skip
SHRINK_REGION = (
    *(value for value in TINY_REGION_RUN if not value.startswith(("student.embed_dim=", "crops.", "optim.max_steps="))),
    "crops.local.count=1", "optim.max_steps=1", "train.batch_size=2", "data.partitions=1",
)  # fmt: skip
"""Overrides that let a run of one step take a second or two."""

_REFERENCE_YAML = """
train: {dataset_path: 'Pathology:root=ROOT:subset=fold_0', output_dir: runs/reference, batch_size_per_gpu: 4}
crops: {local_crops_number: 2}
speed: {use_fp16: false}
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


def call(words: Sequence[object]) -> Done:
    """`dinowds` in this process and folder, as its entry point runs it."""
    argv, handler = sys.argv, signal.getsignal(signal.SIGTERM)
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["dinowds", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, handler)
    return Done(code, out.getvalue(), err.getvalue())


def build_world(folder: Path) -> None:
    """Everything that the pages name, at their names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _sources()
        _lists()
        for command in _datasets_and_runs():
            done = call(command)
            assert done.code == 0, (command, done.err)
        shutil.copytree("data/labelled", "labelled")
        for name in ("one", "two"):
            shutil.copytree("runs/patch", f"runs/{name}", copy_function=os.link)


def copy_world(world: Path, folder: Path) -> None:
    """Runs by links: nothing writes into one that is there already."""
    for path in world.iterdir():
        if path.is_dir():
            shutil.copytree(path, folder / path.name, copy_function=os.link if path.name == "runs" else shutil.copy2)
        else:
            shutil.copy2(path, folder / path.name)


def patches(slides: Iterable[str], first_seed: int = 0, form: str = "{x}_{y}.jpg") -> dict[str, bytes]:
    """Names → 20 patches of each slide, side by side."""
    names = [
        f"{slide}/" + form.format(x=PX * column, y=PX * row, number=row * COLUMNS + column)
        for slide in slides
        for row in range(ROWS)
        for column in range(COLUMNS)
    ]
    return {name: jpeg_patch(first_seed + place, PX) for place, name in enumerate(names)}


def _tar(path: str, slides: Iterable[str], first_seed: int, more: Mapping[str, bytes] | None = None) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, payload in {**patches(slides, first_seed), **(more or {})}.items():
            member = tarfile.TarInfo(name)
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))


def _folder(root: str, slides: Iterable[str], first_seed: int, form: str) -> None:
    for name, payload in patches(slides, first_seed, form).items():
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payload)


def _sources() -> None:
    _tar("cohort-a.tar", ["slide-1", "slide-2"], 0, {"slide-1/1024_2048.jpg": jpeg_patch(99, PX)})
    _folder("cohort-b", ["slide-3"], 100, "{x}_{y}.jpg")
    _tar("new-cohort.tar", ["n0"], 200)
    _tar("labelled.tar", ["q0", "t0"], 300)
    _tar("a.tar", ["sa"], 310)
    _tar("b.tar", ["sb"], 340)
    _tar("slides/one.tar", ["one"], 400)
    _tar("slides/two.tar", ["two"], 500)
    for number, place in enumerate(("hs2p/output/tiles", "slides/tiles")):
        for slide in ("h0", "h1", "h2"):
            write_slide(Path(place), slide, jpeg_patch(600 + number, PX))
    for number, place in enumerate(("trident", "tcga", "gtex")):
        _folder(f"{place}/patch_images", [f"{place}0", f"{place}1"], 700 + 100 * number, "{number:06d}_x{x}_y{y}.jpg")
    make_root(Path("root"))
    Path("photo.jpg").write_bytes(jpeg_patch(800, PX))
    Image.open(io.BytesIO(jpeg_patch(801, 2 * PX))).save("region.png")
    for name, count, seed in (("alpha", 60, 0), ("beta", 30, 1000)):
        write_cohort(Path(f"{name}.tar"), count, seed)


def _lists() -> None:
    texts = {
        "fold_0.txt": "slide-1\n",
        "train_slides.txt": "slide-1\nslide-2\nh0\nh1\ntrident0\n",
        "test_slides.txt": "slide-3\nh2\ntrident1\n",
        "train.txt": "slide0\nbeta/slide1\n",
        "blurred.txt": "slide3/35_70.jpg\n",
        "withdrawn.txt": "slide-2\nslide1\n",
        "labels.csv": "filename,label\n" + "".join(f"h{n},{'tumour' if n else 'normal'}\n" for n in range(3)),
        "classes.csv": "filename,label\n" + "".join(f"slide{n},{n % 2}\n" for n in range(9)),
        "tissue.csv": "filename,label\n"
        + "".join(f"{name},{number % 2}\n" for number, name in enumerate(patches(["q0", "t0"]))),
        "my.yaml": "optim: {lr: 0.001}\n",
        "patch.yaml": _REFERENCE_YAML.replace("ROOT", str(Path("root").resolve())),
    }
    for name, text in texts.items():
        Path(name).write_text(text)


def _datasets_and_runs() -> Iterable[list[str]]:
    yield from (
        line.split()
        for line in (
            "shard cohort-a.tar cohort-b --verify decode --out data/patches",
            "shard labelled.tar --labels tissue.csv --out data/labelled",
            "subset data/labelled --name train --where slide=='q0'",
            "subset data/labelled --name test --where slide=='t0'",
            "subset data/patches --name train --slides train_slides.txt",
            "subset data/patches --name fold_0 --slides fold_0.txt",
            "shard a.tar --out data/a",
            "shard b.tar --out data/b",
            "shard a.tar --out datasets/a",
            "shard b.tar --out datasets/b",
            "shard alpha.tar --labels classes.csv --out datasets/patches",
            "shard alpha.tar beta.tar --out patches",
        )
    )
    yield ["train", "patch", "--data", "data/patches", "--out", "runs/patch", *SHRINK_PATCH]
    region = "embed region data/patches --checkpoint runs/patch --region-size 4096 --min-filled 0.01 --workers 0"
    yield [*region.split(), "--out", "data/regions"]
    yield ["train", "region", "--data", "data/regions", "--out", "runs/region", *SHRINK_REGION]
    yield ["embed", "patch", "data/patches", "--checkpoint", "runs/patch", "--workers", "0", "--out", "features"]
