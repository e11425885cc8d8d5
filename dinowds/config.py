"""Configuration of a training run: YAML plus dotted overrides, over typed defaults.

Key names are the reference system's where they fit. The string under a field says what it is and in what unit;
`configs/*.yaml` are complete and show the same defaults.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from dinowds.errors import ConfigError


@dataclass
class TrainConfig:
    batch_size: int = 256
    """Images of one optimizer step, over all ranks and accumulation steps. The order of the data depends on it."""
    batch_size_per_gpu: int = 128
    """At most this many images go through one device at once; what is more is accumulated."""
    save_every: int = 1
    """Epochs between the checkpoints at an epoch's end."""
    save_every_steps: int = 1000
    """Optimizer steps between the checkpoints within an epoch; 0 for none."""
    keep_checkpoints: int = 3
    """The newest checkpoints that are kept."""
    log_every: int = 10
    """Optimizer steps between lines of metrics.jsonl."""
    seed: int = 0
    """Of the initial weights, the order of the data, the crops and the dropped paths."""


@dataclass
class StudentConfig:
    arch: str = "vit_small"
    """vit_tiny, vit_small, vit_base, vit_large or vit_huge."""
    patch_size: int = 16
    """Side of a token's square, px."""
    out_dim: int = 65536
    """Prototypes K."""
    norm_last_layer: bool = False
    """Freeze the norms of the prototypes at 1."""
    drop_path_rate: float = 0.1
    """Stochastic depth of the last block; linear over depth."""
    use_bn_in_head: bool = False
    """Batch norm in the head's hidden layers; what gets a small dataset off the loss's plateau at ln K."""
    depth: int | None = None
    """Blocks; null for the architecture's own."""
    embed_dim: int | None = None
    """Width of a token; null for the architecture's own."""


@dataclass
class TeacherConfig:
    momentum_teacher: float = 0.996
    """EMA momentum at the first step; rises to 1 on a cosine."""
    warmup_teacher_temp: float = 0.04
    """Temperature of the teacher's softmax in the first epoch."""
    teacher_temp: float = 0.04
    """Temperature after the warmup."""
    warmup_teacher_temp_epochs: int = 0
    """Epochs over which the temperature rises linearly."""


@dataclass
class LrSchedulerConfig:
    name: str = "cosine"
    """cosine."""
    min_lr: float = 1e-6
    """Learning rate at the last step."""
    weight_decay: float = 0.04
    """Weight decay at the first step."""
    weight_decay_end: float = 0.4
    """Weight decay at the last step."""


@dataclass
class OptimConfig:
    epochs: int = 50
    """Passes over the dataset."""
    lr: float = 0.0005
    """Learning rate after the warmup for a batch of 256; scaled by batch_size / 256."""
    warmup_epochs: float = 3.0
    """Epochs over which the learning rate rises linearly from 0."""
    clip_grad: float = 3.0
    """Each tensor's gradient is scaled down to this L2 norm; 0 for no clipping."""
    freeze_last_layer_epochs: int = 1
    """Epochs in which the prototypes do not move."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; null for all of them. The schedules are not shortened."""
    lr_scheduler: LrSchedulerConfig = field(default_factory=LrSchedulerConfig)


@dataclass
class CropsConfig:
    global_crops_size: int = 224
    """Side of the 2 global views, px."""
    global_crops_scale: list[float] = field(default_factory=lambda: [0.4, 1.0])
    """Share of the image's area that a global view shows: least, most."""
    local_crops_number: int = 8
    """Local views of each image."""
    local_crops_size: int = 96
    """Side of a local view, px."""
    local_crops_scale: list[float] = field(default_factory=lambda: [0.05, 0.4])
    """Share of the image's area that a local view shows: least, most."""
    renderer: str = "cpu"
    """cpu (fused) or pil (the slow reference)."""


@dataclass
class DataConfig:
    chunk_size: int = 64
    """Samples read together: about 1 MB of 256 px JPEG, one request on object storage."""
    window_chunks: int = 1024
    """Chunks mixed together: at 1,024, even slide-sorted shards give batches that are nearly uniform draws."""
    partitions: int | None = None
    """Streams that every global batch draws from; null for the largest power of two up to 64 that divides it."""
    verify_digests: bool = True
    """Compare each payload with the digest in the index as it is read (about 1 microsecond a patch)."""
    max_bad_samples: int = 100
    """Unreadable samples that are replaced before the run stops."""


@dataclass
class SpeedConfig:
    num_workers: int | None = None
    """Loader processes of each rank; null for one a core (shared among the ranks of a host), 0 for none."""
    prefetch_factor: int = 2
    """Batches that each loader process keeps ready."""
    precision: str = "auto"
    """auto (bf16 where the device computes in it, fp32 elsewhere), bf16 or fp32."""


@dataclass
class PatchConfig:
    """Everything that decides what `dinowds train patch` computes."""

    train: TrainConfig = field(default_factory=TrainConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    crops: CropsConfig = field(default_factory=CropsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)


FREE_TO_CHANGE = frozenset(
    {
        "train.batch_size_per_gpu",
        "train.keep_checkpoints",
        "train.log_every",
        "train.save_every",
        "train.save_every_steps",
        "optim.max_steps",
        "data.max_bad_samples",
        "data.verify_digests",
        "speed.num_workers",
        "speed.prefetch_factor",
    }
)
"""Keys that may differ when a run goes on: they decide how it is computed, not what."""


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} → {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
