"""Configuration of a training run: YAML plus dotted overrides, over typed defaults.

Key names are the reference system's where they fit. The string under a field says what it is and in what unit;
`configs/*.yaml` are complete and show the same defaults.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, Union, cast, overload

from dinowds.errors import ConfigError

Kind: TypeAlias = Literal["image", "region"]
"""Of the samples that a run is trained on, as in a dataset's manifest."""


@dataclass
class TrainConfig:
    batch_size: int = 256
    """Samples of one optimizer step, over all ranks and accumulation steps. The order of the data depends on it."""
    max_batch_per_device: int = 128
    """At most this many samples go through one device at once; what is more is accumulated."""
    save_every: int = 1
    """Epochs between the checkpoints at an epoch's end."""
    save_every_steps: int = 1000
    """Optimizer steps between the checkpoints within an epoch; 0 for none."""
    keep_checkpoints: int = 3
    """The newest checkpoints that are kept."""
    log_every: int = 10
    """Optimizer steps between lines of metrics.jsonl."""
    max_bad_steps: int = 10
    """Steps in a row whose loss or gradients are not finite, and which are therefore not applied, before the run stops."""
    compile: bool = False
    """Compile each block of the backbone with torch.compile: a minute at the start, faster steps on a GPU."""
    deterministic: bool = False
    """Let only deterministic kernels run on a GPU, so that the same command gives the same bits; slower."""
    seed: int = 0
    """Of the initial weights, the order of the data, the crops and the dropped paths."""


@dataclass
class StudentConfig:
    """Of both kinds."""

    arch: str
    """Name of the backbone's size."""
    out_dim: Union[int, str] = 65536  # noqa: UP007  (omegaconf reads no `int | str`)
    """Prototypes K; auto for a power of two near a twentieth of the samples, 1,024 to 65,536."""
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
    pos_interpolation: str = "timm"
    """How positions are interpolated for views of another size: timm (antialiased), size (not antialiased) or dino (as
    the original DINO and HIPT, by factors). Weights are to be used with what they were trained with."""
    drop_path_skips: bool = False
    """Compute only the samples whose path is kept, the same number in each block (DINOv2's stochastic depth): faster."""
    registers: int = 0
    """Register tokens beside the class token (Darcet et al. 2024); 4 is usual."""
    layer_scale: float | None = None
    """Initial value of a learned factor of each channel of each residual branch (Touvron et al. 2021), such as 1e-5; null
    for none."""
    init_from: str | None = None
    """Weights that student and teacher begin with: a run folder, a .pt, .pth or .safetensors file, or a timm folder.
    The head is taken too if it has the shape of this one. null for random weights."""


@dataclass
class PatchStudentConfig(StudentConfig):
    arch: str = "vit_small"
    """vit_tiny, vit_small, vit_base, vit_large or vit_huge."""
    patch_size: int = 16
    """Side of a token's square, px."""


@dataclass
class RegionStudentConfig(StudentConfig):
    arch: str = "hvit_xs"
    """hvit_xs, hvit_s or hvit_b: width 192, 384 or 768, 6 blocks, 6, 6 or 12 heads."""
    input_dim: int | None = None
    """Features of a cell; null for those of the dataset."""


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
class LossConfig:
    centering: str = "ema"
    """What keeps the teacher's outputs from collapsing: ema (a moving average of them is subtracted; DINO) or
    sinkhorn_knopp (prototypes are balanced over the global batch in three iterations; SwAV, DINOv2)."""
    koleo_weight: float = 0.0
    """Weight of the KoLeo loss, which spreads the student's features of the global views evenly (Sablayrolles et al. 2019;
    0.1 in DINOv2); over the samples that go through a device together."""


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
    """Learning rate after the warmup for a batch of 256; scaled as lr_scaling says."""
    lr_scaling: str = "linear"
    """linear (· batch_size / 256) or sqrt (· its square root; usual for AdamW at large batches)."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each block to the one before it (Clark et al. 2020); 1 for none, 0.9 in DINOv2."""
    warmup_epochs: float = 3.0
    """Epochs over which the learning rate rises linearly from 0."""
    clip_grad: float = 3.0
    """Gradients are scaled down to this L2 norm; 0 for no clipping."""
    clip: str = "tensor"
    """What that norm is of: tensor (each by itself, as in DINO) or global (all together)."""
    freeze_last_layer_epochs: int = 1
    """Epochs in which the prototypes do not move."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; null for all of them. The schedules are not shortened."""
    lr_scheduler: LrSchedulerConfig = field(default_factory=LrSchedulerConfig)


@dataclass
class GlobalCropsConfig:
    count: int = 2
    """Global views of each image: the ones that the teacher sees."""
    size: int = 224
    """Side of a view, px."""
    scale: list[float] = field(default_factory=lambda: [0.4, 1.0])
    """Share of the image's area that a view shows: least, most."""
    aspect: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    """Width ÷ height of the box that is cut out: least, most."""
    blur: list[float] = field(default_factory=lambda: [1.0, 0.1])
    """Probability of a Gaussian blur of each view in turn; the last one holds for the views after it."""
    solarize: list[float] = field(default_factory=lambda: [0.0, 0.2])
    """Probability of inverting the bright values of each view in turn; the last one holds for the views after it."""


@dataclass
class LocalCropsConfig:
    count: int = 8
    """Local views of each image: the student alone sees them."""
    size: int = 96
    """Side of a view, px."""
    scale: list[float] = field(default_factory=lambda: [0.05, 0.4])
    """Share of the image's area that a view shows: least, most."""
    aspect: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    """Width ÷ height of the box that is cut out: least, most."""
    blur: list[float] = field(default_factory=lambda: [0.5])
    """As of the global views."""
    solarize: list[float] = field(default_factory=lambda: [0.0])
    """As of the global views."""
    inside_global: bool = False
    """Cut each local view inside the box of a global one: view i in that of global view i modulo their number."""


@dataclass
class CropsConfig:
    renderer: str = "auto"
    """auto (device on a GPU, else cpu), cpu (compiled, in the loader processes), device (on the GPU, a batch at once;
    loader processes only decode) or pil (the slow reference)."""
    global_: GlobalCropsConfig = field(default_factory=GlobalCropsConfig)
    local: LocalCropsConfig = field(default_factory=LocalCropsConfig)
    flip: float = 0.5
    """Probability of a left-right flip."""
    vertical_flip: float = 0.0
    """Probability of a top-bottom flip; 0.5 for images without an up and down, such as tissue."""
    quarter_turns: bool = False
    """Turn each view by 0, 90, 180 or 270 degrees, all equally likely."""
    stain: float = 0.0
    """Probability of jitter of the stains haematoxylin, eosin and DAB (HED), before that of colours."""
    stain_strength: float = 0.05
    """Factor of each stain is uniform in 1 ± this, its shift in ± this (units of optical density); 0.2 is strong."""
    jitter: float = 0.8
    """Probability of colour jitter: brightness, contrast, saturation and hue in random order."""
    brightness: float = 0.4
    """Brightness factor is uniform in 1 ± this."""
    contrast: float = 0.4
    """Contrast factor is uniform in 1 ± this."""
    saturation: float = 0.2
    """Saturation factor is uniform in 1 ± this."""
    hue: float = 0.1
    """Hue shift is uniform in ± this, in turns of the colour circle; at most 0.5."""
    grey: float = 0.2
    """Probability of taking all colour out."""
    blur_radius: list[float] = field(default_factory=lambda: [0.1, 2.0])
    """Standard deviation of a blur, px of the view: least, most."""
    solarize_threshold: int = 128
    """Values from this one on are inverted where a view is solarized, 0 to 256."""


@dataclass
class RegionGlobalConfig:
    count: int = 2
    """Global views of each region: the ones that the teacher sees."""
    size: int = 14
    """Side of a view, cells; 7/8 of 16."""


@dataclass
class RegionLocalConfig:
    count: int = 8
    """Local views of each region: the student alone sees them."""
    size: int = 6
    """Side of a view, cells; 3/8 of 16."""


@dataclass
class RegionCropsConfig:
    global_: RegionGlobalConfig = field(default_factory=RegionGlobalConfig)
    local: RegionLocalConfig = field(default_factory=RegionLocalConfig)
    flip: float = 0.5
    """Probability of a left-right flip."""
    symmetries: bool = False
    """Flip with probability 1/2, whatever flip, and turn by 0, 90, 180 or 270 degrees: the eight symmetries of a
    square, all equally likely."""


@dataclass
class DataConfig:
    chunk_size: int = 32
    """Neighbouring samples that are read together, one request or one sequential read: 32 JPEGs of 256 px are about
    500 kB, 8 regions of 16 x 16 cells of 384 features 1.6 MB."""
    window_chunks: int | None = None
    """Chunks of each partition that are mixed together; null for 32 · batch_size over all partitions, at which even
    slide-sorted shards give batches whose slides are within 2 % as many as a uniform draw's."""
    partitions: int | None = None
    """Streams that every global batch draws from, so that each host reads only its own; null for 1 where the dataset
    fits into one window, else the largest divisor of batch_size up to 64. Their number costs one machine nothing."""
    max_per_slide: int | None = None
    """Most samples of one slide in a global batch; null for any number."""
    weights: dict[str, float] = field(default_factory=dict)
    """Cohort → its share of the samples that are drawn, in any unit; {} or null for every sample once an epoch."""
    verify_digests: bool = True
    """Compare each payload with the digest in the index as it is read (about 1 microsecond a patch)."""
    max_bad_samples: int = 100
    """Unreadable samples that are replaced before the run stops."""
    read_ahead: int = 2
    """Batches of each loader process whose chunks are asked for before they are needed."""
    cache_dir: str | None = None
    """Folder on a local disk for chunks of remote shards, shared by the processes of a host; null for $DINOWDS_CACHE,
    else $SLURM_TMPDIR/dinowds, else ~/.cache/dinowds."""
    cache_gib: float = 32.0
    """Largest size of these chunks, GiB. The open windows should fit: 32 · batch_size chunks."""


@dataclass
class SpeedConfig:
    num_workers: int | None = None
    """Loader processes of each rank; null for one a core of its share (half of that without a GPU), 0 for none."""
    prefetch_factor: int = 2
    """Batches that each loader process keeps ready."""
    precision: str = "auto"
    """auto (bf16 where the device computes in it, fp32 elsewhere), bf16, fp16 (with a loss scale) or fp32."""
    tf32: bool = True
    """Let float32 matrix products on a GPU round their inputs to TF32's 10 bits."""
    checkpoint_activations: bool = False
    """Keep only the inputs of each block and compute it again in the backward pass: less memory, a third slower."""
    sharding: str = "none"
    """none (each rank holds all weights; DDP) or fsdp (each holds its share of weights and optimizer state; FSDP2, for
    vit_large and vit_huge)."""


@dataclass
class MonitorConfig:
    warn: bool = True
    """Say so when a run collapses, stays at ln K, or diverges."""
    stop: bool = False
    """Stop such a run."""


@dataclass
class KnnConfig:
    query_dataset_path: str | None = None
    """DATASET[:SUBSET] with labels whose samples are the neighbours; null for no evaluation."""
    test_dataset_path: str | None = None
    """DATASET[:SUBSET] with the same labels whose samples are classified."""
    nb_knn: int = 20
    """Neighbours k."""
    temperature: float = 0.07
    """T of their weights exp(cosine / T)."""
    batch_size_per_gpu: int = 256
    """Samples that go through a device at once."""
    image_size: int | None = None
    """Side that images are resized to, px; null for crops.global.size."""
    overlap: str = "refuse"
    """When a test slide is also trained on: refuse or warn."""


@dataclass
class EarlyStoppingConfig:
    enable: bool = False
    """Stop when the teacher's figure no longer grows."""
    tracking: str = "auc"
    """The figure: auc (AUROC), acc or balanced_acc."""
    min_max: str = "max"
    """max (larger is better) or min."""
    patience: int = 20
    """Evaluations without a new best before the run stops."""
    min_epoch: int = 30
    """Epochs that are run in any case."""


@dataclass
class TuneConfig:
    """A k-nearest-neighbours classification of labelled images while the run goes on."""

    tune_every: int = 1
    """Epochs between evaluations; 0 for none."""
    tune_every_steps: int = 0
    """Optimizer steps between evaluations; 0 for none."""
    knn: KnnConfig = field(default_factory=KnnConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)


@dataclass
class WandbConfig:
    enable: bool = False
    """Log to Weights & Biases too (pip install 'dinowds[wandb]')."""
    project: str = "dinowds"
    """Name of the project."""
    mode: str = "offline"
    """offline (files in the run folder, for 'wandb sync') or online, with the key of 'wandb login' or WANDB_API_KEY."""


@dataclass
class MlflowConfig:
    enable: bool = False
    """Log to MLflow too (pip install 'dinowds[mlflow]')."""
    experiment: str = "dinowds"
    """Name of the experiment."""
    uri: str | None = None
    """Tracking server; null for MLFLOW_TRACKING_URI, else files in the run folder."""


@dataclass
class RunConfig:
    """Everything that decides what `dinowds train` computes."""

    kind: ClassVar[Kind]

    train: TrainConfig
    student: StudentConfig
    teacher: TeacherConfig
    loss: LossConfig
    optim: OptimConfig
    crops: CropsConfig | RegionCropsConfig
    data: DataConfig
    speed: SpeedConfig
    monitor: MonitorConfig
    tune: TuneConfig
    wandb: WandbConfig
    mlflow: MlflowConfig


@dataclass
class PatchConfig(RunConfig):
    """Of `dinowds train patch`."""

    kind: ClassVar[Kind] = "image"

    train: TrainConfig = field(default_factory=TrainConfig)
    student: PatchStudentConfig = field(default_factory=PatchStudentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    crops: CropsConfig = field(default_factory=CropsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    mlflow: MlflowConfig = field(default_factory=MlflowConfig)


@dataclass
class RegionConfig(RunConfig):
    """Of `dinowds train region`."""

    kind: ClassVar[Kind] = "region"

    train: TrainConfig = field(default_factory=lambda: TrainConfig(save_every=10))
    student: RegionStudentConfig = field(default_factory=RegionStudentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(epochs=125, warmup_epochs=10.0))
    crops: RegionCropsConfig = field(default_factory=RegionCropsConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(chunk_size=8))
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    mlflow: MlflowConfig = field(default_factory=MlflowConfig)


CONFIGS: dict[Kind, type[PatchConfig] | type[RegionConfig]] = {"image": PatchConfig, "region": RegionConfig}

COMMANDS: dict[Kind, str] = {"image": "patch", "region": "region"}
"""Kind of samples → the command of `dinowds train`, and the name of its file in `configs`."""

FREE_TO_CHANGE = frozenset(
    {
        "train.max_batch_per_device",
        "train.keep_checkpoints",
        "train.log_every",
        "train.save_every",
        "train.save_every_steps",
        "train.max_bad_steps",
        "train.compile",
        "optim.max_steps",
        "data.cache_dir",
        "data.cache_gib",
        "data.max_bad_samples",
        "data.read_ahead",
        "data.verify_digests",
        "speed.num_workers",
        "speed.prefetch_factor",
        "speed.checkpoint_activations",
        "speed.sharding",
    }
)
"""Keys that may differ when a run goes on: they decide how it is computed, not what. So may those of `_WATCHING`."""
_WATCHING = ("monitor.", "tune.", "wandb.", "mlflow.")

_FREE_FORM = frozenset({"data.weights"})  # whose keys are names of the user's own


def _with_crops_key(content: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """With a key of the section `crops` named otherwise: Python has no field called 'global'."""
    crops = content.get("crops")
    if not isinstance(crops, dict) or old not in crops:
        return content
    return {**content, "crops": {new if key == old else key: value for key, value in crops.items()}}


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} → {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and f"{prefix}{key}" not in _FREE_FORM:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@overload
def load_config(
    path: Path | None = ..., overrides: Sequence[str] = ..., kind: Literal["image"] = ...
) -> PatchConfig: ...
@overload
def load_config(path: Path | None, overrides: Sequence[str], kind: Literal["region"]) -> RegionConfig: ...
@overload
def load_config(path: Path | None, overrides: Sequence[str], kind: Kind) -> RunConfig: ...
def load_config(path: Path | None = None, overrides: Sequence[str] = (), kind: Kind = "image") -> RunConfig:
    """Defaults of a kind ← YAML file ← `key=value` overrides, checked.

    Raises:
        ConfigError: a file that is not YAML, an unknown key (the nearest is named), or a value of the wrong kind.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.structured(CONFIGS[kind])
    for source, content in [(str(path), _read_yaml(path))] if path else []:
        merged = _merge(merged, kind, content, source)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: expected key=value, like optim.lr=1e-4")
        try:
            content = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
        except (OmegaConfBaseException, ValueError) as error:
            raise ConfigError(f"override {override!r}: {_first_line(error)}") from None
        merged = _merge(merged, kind, content, f"override {override!r}")
    try:
        config = cast(RunConfig, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path or 'overrides'}: {_first_line(error)}") from None
    check_config(config)
    return config


def default_config_path(name: str) -> Path:
    """A configuration that ships with dinowds: `patch`, `region`, `patch_vit_large`, …"""
    return Path(str(files("dinowds.configs") / f"{name}.yaml"))


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain nested dict, with the names of the keys in YAML."""
    return _with_crops_key(dataclasses.asdict(config), "global_", "global")


def to_yaml(config: RunConfig) -> str:
    """Resolved configuration, every key."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def kind_of(saved: dict[str, Any]) -> Kind:
    """The kind of a saved configuration."""
    student = saved.get("student")
    return "region" if isinstance(student, dict) and "input_dim" in student else "image"


def differences(saved: dict[str, Any], config: RunConfig) -> list[str]:
    """`key: saved → asked for`, for keys that decide what a run computes (those of `FREE_TO_CHANGE` do not).

    A key that the saved configuration lacks, since it is older than the key, had what is the default now.
    """
    new = flatten(to_dict(config))
    old = flatten(to_dict(CONFIGS[config.kind]())) | flatten(saved)
    free = FREE_TO_CHANGE | {key for key in new if key.startswith(_WATCHING)}
    if config.student.use_bn_in_head:  # whose statistics are of the samples that go through the device together
        free -= {"train.max_batch_per_device"}
    keys = sorted((old.keys() | new.keys()) - free)
    return [f"{key}: {old.get(key)} → {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


_Rule = tuple[str, object, bool, str]
"""Key, value, whether it can work, and what is expected."""


def check_config(config: RunConfig) -> None:
    """Raise ConfigError for the first value that cannot work, whatever the dataset."""
    rules = _rules(config)
    if isinstance(config, PatchConfig):
        rules += _patch_rules(config)
    if isinstance(config, RegionConfig):
        rules += _region_rules(config)
    for key, value, holds, expected in rules:
        if not holds:
            shown = f"{value:g}" if isinstance(value, float) else value
            raise ConfigError(f"{key} is {shown}, expected {expected}")


def _rules(config: RunConfig) -> list[_Rule]:
    train, student, teacher, optim, data, speed, tune = (
        config.train, config.student, config.teacher, config.optim, config.data, config.speed, config.tune
    )  # fmt: skip
    at_least_one = {
        "train.batch_size": train.batch_size,
        "train.max_batch_per_device": train.max_batch_per_device,
        "train.save_every": train.save_every,
        "train.keep_checkpoints": train.keep_checkpoints,
        "train.log_every": train.log_every,
        "train.max_bad_steps": train.max_bad_steps,
        "student.out_dim": student.out_dim if isinstance(student.out_dim, int) else None,
        "student.depth": student.depth,
        "optim.epochs": optim.epochs,
        "optim.max_steps": optim.max_steps,
        "data.chunk_size": data.chunk_size,
        "data.window_chunks": data.window_chunks,
        "data.partitions": data.partitions,
        "data.max_per_slide": data.max_per_slide,
        "speed.prefetch_factor": speed.prefetch_factor,
        "tune.knn.nb_knn": tune.knn.nb_knn,
        "tune.knn.batch_size_per_gpu": tune.knn.batch_size_per_gpu,
        "tune.knn.image_size": tune.knn.image_size,
        "tune.early_stopping.patience": tune.early_stopping.patience,
    }
    not_negative = {
        "train.save_every_steps": train.save_every_steps,
        "train.seed": train.seed,
        "teacher.warmup_teacher_temp_epochs": teacher.warmup_teacher_temp_epochs,
        "optim.lr": optim.lr,
        "optim.warmup_epochs": optim.warmup_epochs,
        "optim.clip_grad": optim.clip_grad,
        "optim.freeze_last_layer_epochs": optim.freeze_last_layer_epochs,
        "data.max_bad_samples": data.max_bad_samples,
        "data.read_ahead": data.read_ahead,
        "data.cache_gib": data.cache_gib,
        "speed.num_workers": 0 if speed.num_workers is None else speed.num_workers,
        "student.registers": student.registers,
        "loss.koleo_weight": config.loss.koleo_weight,
        "tune.tune_every": tune.tune_every,
        "tune.tune_every_steps": tune.tune_every_steps,
        "tune.early_stopping.min_epoch": tune.early_stopping.min_epoch,
    }
    return [
        *_at_least_one(at_least_one),
        *(
            (key, value, 0 <= value < math.inf, "0 or more" if value < 0 else "a finite number")
            for key, value in not_negative.items()
        ),
        _one_of("student.pos_interpolation", student.pos_interpolation, "timm", "size", "dino"),
        _one_of("optim.lr_scheduler.name", optim.lr_scheduler.name, "cosine"),
        _one_of("speed.precision", speed.precision, "auto", "bf16", "fp16", "fp32"),
        _one_of("speed.sharding", speed.sharding, "none", "fsdp"),
        _one_of("loss.centering", config.loss.centering, "ema", "sinkhorn_knopp"),
        _one_of("optim.lr_scaling", optim.lr_scaling, "linear", "sqrt"),
        _one_of("optim.clip", optim.clip, "tensor", "global"),
        _one_of("tune.knn.overlap", tune.knn.overlap, "refuse", "warn"),
        _one_of("tune.early_stopping.tracking", tune.early_stopping.tracking, "auc", "acc", "balanced_acc"),
        _one_of("tune.early_stopping.min_max", tune.early_stopping.min_max, "max", "min"),
        _one_of("wandb.mode", config.wandb.mode, "offline", "online"),
        (
            "student.out_dim",
            student.out_dim,
            isinstance(student.out_dim, int) or student.out_dim == "auto",
            "a number or auto",
        ),
        ("student.layer_scale", student.layer_scale, student.layer_scale is None or student.layer_scale > 0, "above 0"),
        ("optim.layer_decay", optim.layer_decay, 0 < optim.layer_decay <= 1, "above 0, at most 1"),
        ("tune.knn.temperature", tune.knn.temperature, tune.knn.temperature > 0, "above 0"),
        ("student.drop_path_rate", student.drop_path_rate, 0 <= student.drop_path_rate < 1, "0 ≤ rate < 1"),
        ("teacher.momentum_teacher", teacher.momentum_teacher, 0 <= teacher.momentum_teacher <= 1, "0 to 1"),
        ("teacher.teacher_temp", teacher.teacher_temp, teacher.teacher_temp > 0, "above 0"),
        ("teacher.warmup_teacher_temp", teacher.warmup_teacher_temp, teacher.warmup_teacher_temp > 0, "above 0"),
        ("optim.warmup_epochs", optim.warmup_epochs, optim.warmup_epochs < optim.epochs, "less than optim.epochs"),
    ]


def _patch_rules(config: PatchConfig) -> list[_Rule]:
    """Those of the crops are `recipe.patch_recipe`'s."""
    student, crops = config.student, config.crops
    expected = f"a multiple of student.patch_size, {student.patch_size}"
    return [
        *_at_least_one({"student.patch_size": student.patch_size}),
        _one_of("student.arch", student.arch, "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"),
        *(
            (f"crops.{name}.size", side, side >= 1 and side % student.patch_size == 0, expected)
            for name, side in (("global", crops.global_.size), ("local", crops.local.size))
        ),
    ]


def _region_rules(config: RegionConfig) -> list[_Rule]:
    student, crops = config.student, config.crops
    at_least_one = {
        "student.input_dim": student.input_dim,
        "crops.global.count": crops.global_.count,
        "crops.global.size": crops.global_.size,
        "crops.local.size": crops.local.size,
    }
    fewest = 0 if crops.global_.count > 1 else 1
    return [
        _one_of("student.arch", student.arch, "hvit_xs", "hvit_s", "hvit_b"),
        *_at_least_one(at_least_one),
        ("crops.local.count", crops.local.count, crops.local.count >= fewest, f"at least {fewest}"),
        ("crops.flip", crops.flip, 0 <= crops.flip <= 1, "a probability from 0 to 1"),
    ]


def _at_least_one(values: dict[str, int | None]) -> list[_Rule]:
    """null is a default."""
    return [(key, value, value is None or value >= 1, "at least 1") for key, value in values.items()]


def _one_of(key: str, value: str, *choices: str) -> _Rule:
    return key, value, value in choices, f"one of {', '.join(choices)}"


def _merge(merged: Any, kind: Kind, content: Any, source: str) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(content, dict):
        raise ConfigError(f"{source}: expected sections such as 'train:' and 'optim:', found {type(content).__name__}")
    known = flatten(to_dict(CONFIGS[kind]()))
    content = _with_empty_sections(content, known)
    for key in flatten(content):
        if key not in known:
            raise ConfigError(f"{source}: unknown key {key!r}{_suggestion(key, kind, known)}")
    content, nulls = _without_nulls(content, source)
    try:
        for key in nulls:
            OmegaConf.update(merged, key, {}, merge=False)
        return OmegaConf.merge(merged, OmegaConf.create(_with_crops_key(content, "global", "global_")))
    except OmegaConfBaseException as error:
        key = (getattr(error, "full_key", None) or "").replace("crops.global_", "crops.global")
        raise ConfigError(f"{source}: {key}: {_first_line(error)}") from None


def _with_empty_sections(content: dict[str, Any], known: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A section of a file whose keys are all commented out is empty, not null."""
    filled = dict(content)
    for key, value in content.items():
        place = f"{prefix}{key}."
        if any(name.startswith(place) for name in known) and (value is None or isinstance(value, dict)):
            filled[key] = _with_empty_sections(value or {}, known, place)
    return filled


def _without_nulls(content: dict[str, Any], source: str) -> tuple[dict[str, Any], list[str]]:
    """`content` without the free-form keys that are null or have all their lines commented out, and these keys."""
    nulls = []
    for key in sorted(_FREE_FORM):
        section, _, name = key.partition(".")
        inner = content.get(section, {})
        if name not in inner:
            continue
        pairs = inner[name]
        if pairs is None:
            nulls.append(key)
            content = {**content, section: {other: value for other, value in inner.items() if other != name}}
        elif not isinstance(pairs, dict) or any(isinstance(value, dict | list) for value in pairs.values()):
            raise ConfigError(
                f"{source}: {key}: expected COHORT: WEIGHT pairs, such as '{key}={{alpha: 2, beta: 1}}', found {pairs}"
            )
    return content, nulls


_EARLIER_NAMES_OF_BOTH = {
    "crops.local_crops_number": "crops.local.count",
    "speed.use_fp16": "speed.precision",
    "train.batch_size_per_gpu": "train.batch_size",
    "train.start_from_checkpoint": "student.init_from",
}
_EARLIER_NAMES: dict[Kind, dict[str, str]] = {
    "image": {
        **_EARLIER_NAMES_OF_BOTH,
        "crops.global_crops_size": "crops.global.size",
        "crops.global_crops_scale": "crops.global.scale",
        "crops.local_crops_size": "crops.local.size",
        "crops.local_crops_scale": "crops.local.scale",
    },
    "region": {
        **_EARLIER_NAMES_OF_BOTH,
        "crops.global_crops_scale": "crops.global.size",
        "crops.local_crops_scale": "crops.local.size",
    },
}
"""Of DINO's own options and earlier systems."""

_OF_COMMANDS = {
    "train.dataset_path": "the dataset is given as --data",
    "train.output_dir": "the run folder is given as --out",
    "train.pct": "a part of a dataset is a subset, see 'dinowds subset'",
    "train.resume": "the same command goes on where it stopped",
    "train.resume_from_checkpoint": "the same command goes on where it stopped",
}
_OF_OTHERS: dict[Kind, dict[str, str]] = {
    "image": {**_OF_COMMANDS, "student.input_dim": "a key of regions; images have 3 channels"},
    "region": {
        **_OF_COMMANDS,
        "student.patch_size": "a region's cells are as the dataset has them, see 'dinowds embed region'",
        "student.region_size": "a region's cells are as the dataset has them, see 'dinowds embed region'",
        "crops.renderer": "cells are moved, not rendered",
    },
}
"""Keys of the other kind and of earlier systems that there is nothing like here, and why."""


def _suggestion(key: str, kind: Kind, known: dict[str, Any]) -> str:
    if key in _EARLIER_NAMES[kind]:
        unit = ", in cells" if kind == "region" and key.endswith("_scale") else ""
        return f"; here it is {_EARLIER_NAMES[kind][key]!r}{unit}"
    if key in _OF_OTHERS[kind]:
        return f": {_OF_OTHERS[kind][key]}"
    if sections := [name for name in known if name.startswith(key + ".")]:
        return f", which is a section: set one of its keys, such as {sections[0]}"
    same_name = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    near = same_name or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; see configs/{COMMANDS[kind]}.yaml for all keys"


def _read_yaml(path: Path) -> Any:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    return {} if content is None else content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
