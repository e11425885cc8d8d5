"""What a run can be told: typed sections with their defaults.

Key names are the reference system's where they fit. The string under a field says what it is and in what unit;
`configs/*.yaml` are complete and show the same defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias, Union

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
    """Steps in a row whose loss or gradients are not finite, and which are therefore not applied, before the run
    stops."""
    compile: bool = False
    """Compile each block of the backbone with torch.compile: minutes at the start, faster steps on a GPU."""
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
    """Compute only the samples whose path is kept, the same number in each block (DINOv2's stochastic depth):
    faster."""
    registers: int = 0
    """Register tokens beside the class token (Darcet et al. 2024); 4 is usual."""
    layer_scale: float | None = None
    """Initial value of a learned factor of each channel of each residual branch (Touvron et al. 2021), such as 1e-5;
    null for none."""
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
    """EMA momentum at the first step; goes to final_momentum_teacher on a cosine."""
    final_momentum_teacher: float = 1.0
    """EMA momentum at the end (the name is DINOv2's). Below 1 the teacher follows to the end."""
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
    """Weight of the KoLeo loss, which spreads the student's features of the global views evenly (Sablayrolles et al.
    2019; 0.1 in DINOv2); over the samples that go through a device together."""


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
    """Factor of the learning rate from each block to the one before it (Clark et al. 2020); 1 for none, 0.9 in
    DINOv2."""
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
