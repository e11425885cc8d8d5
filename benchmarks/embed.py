"""How many images a second does `dinowds embed patch` embed, against a plain loop?

The plain loop is what one would write: a torch DataLoader over image files, Pillow, ToTensor and Normalize, the same
ViT, and all features in one Parquet file at the end. A tiny ViT, so that reading and decoding count. Both in this
process with as many loader processes; rounds alternate and medians are compared.

    python benchmarks/embed.py [--images 4096] [--workers 2] [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import append_result, machine, photo_patches
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import normalize, pil_to_tensor

from dinowds.embed.patches.embed import embed_patches
from dinowds.embed.patches.job import PatchOptions
from dinowds.model.architecture import Architecture, Size
from dinowds.model.pixels import IMAGENET_MEAN, IMAGENET_STD
from dinowds.model.vit import build_backbone
from dinowds.model.weights import load_backbone, read_weights
from dinowds.shard.build import ShardOptions, build_dataset

PACKAGES = ("numpy", "pillow", "pyarrow", "torch", "torchvision", "timm")
BATCH = 128
TINY = Architecture("image", Size(64, 1, 2), 3, 32, 8)


class Files(Dataset[Tensor]):
    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self._paths[index]) as image:
            pixels = pil_to_tensor(image.convert("RGB")).float() / 255
        normalised: Tensor = normalize(pixels, list(IMAGENET_MEAN), list(IMAGENET_STD))
        return normalised


def make_inputs(folder: Path, count: int) -> None:
    """The same images as files and as a dataset, and weights."""
    (folder / "files").mkdir()
    patches = photo_patches(min(count, 2048), 256, seed=0)
    with tarfile.open(folder / "cohort.tar", "w") as tar:
        for index in range(count):
            payload = patches[index % len(patches)]
            (folder / "files" / f"{index}.jpg").write_bytes(payload)
            member = tarfile.TarInfo(f"slide{index // 100}/{index}_0.jpg")
            member.size = len(payload)
            tar.addfile(member, BytesIO(payload))
    build_dataset([folder / "cohort.tar"], folder / "dataset", ShardOptions(max_count=1000))
    torch.manual_seed(0)
    architecture = {"kind": "image", **TINY.size._asdict(), "in_dim": 3, "patch_size": TINY.patch_size}
    about = {"architecture": {**architecture, "grid": TINY.grid, "pos_interpolation": "timm"}, "dataset": {}}
    state = {f"backbone.{name}": value for name, value in build_backbone(TINY).state_dict().items()}
    torch.save({"format_version": 1, "about": about, "teacher": state}, folder / "weights.pt")


@torch.inference_mode()
def plain(folder: Path, count: int, workers: int) -> float:
    """Images a second."""
    began = time.perf_counter()
    model = load_backbone(read_weights(folder / "weights.pt"))
    files = Files([folder / "files" / f"{index}.jpg" for index in range(count)])
    parts = [model(batch) for batch in DataLoader(files, BATCH, num_workers=workers)]
    features = torch.cat(parts).half().numpy()
    lists = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
    pq.write_table(pa.table({"feature": lists}), folder / "plain.parquet")
    return count / (time.perf_counter() - began)


def ours(folder: Path, count: int, workers: int) -> float:
    """Images a second, of everything from opening the dataset to features.json."""
    shutil.rmtree(folder / "features", ignore_errors=True)
    began = time.perf_counter()
    options = PatchOptions(str(folder / "weights.pt"), batch_size=BATCH, workers=workers, precision="fp32")
    embed_patches(folder / "dataset", folder / "features", options)
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    speeds: dict[str, list[float]] = {"plain": [], "dinowds": []}
    with tempfile.TemporaryDirectory() as name:
        make_inputs(Path(name), arguments.images)
        for _ in range(arguments.rounds):
            speeds["plain"].append(plain(Path(name), arguments.images, arguments.workers))
            speeds["dinowds"].append(ours(Path(name), arguments.images, arguments.workers))
    medians = {what: statistics.median(found) for what, found in speeds.items()}
    ratio = medians["dinowds"] / medians["plain"]
    for what, found in speeds.items():
        print(f"{what}: {medians[what]:,.0f} images/s ({min(found):,.0f} to {max(found):,.0f})")
    print(f"dinowds / plain: {ratio:.2f}")
    print(machine(PACKAGES))
    if arguments.json:
        content = {"images": arguments.images, "workers": arguments.workers, "images_per_second": speeds}
        append_result(arguments.json, "embed", {**content, "ratio": round(ratio, 2)}, PACKAGES)


if __name__ == "__main__":
    main()
