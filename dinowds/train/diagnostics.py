"""Whether a run learns, and how fast: figures as pure functions of tensors and shapes.

Functions from tensors to tensors never wait for the device; they are called at log points alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dinowds.config import RunConfig
from dinowds.model.architecture import Architecture
from dinowds.model.dino import DinoModel
from dinowds.model.head import BOTTLENECK_DIM, HIDDEN_DIM

GRADIENT_NORM = "gradient_norm/"
"""What the names of gradient norms begin with; `gradient_norm/all` is that of all gradients together."""

_FLOOR = 1e-6
_TINY = 1e-12
"""Keeps a quotient of norms finite."""


class Sums(NamedTuple):
    """What is added up over micro-batches and ranks for `output_figures`, as views of one flat vector."""

    mean_output: Tensor
    """[K]: sum of the teacher's targets."""
    choices: Tensor
    """[K]: how often each prototype is a target's largest."""
    moments: Tensor
    """[2, 2, D]: of student and teacher, sums of features of L2 norm 1 and of their squares."""

    @classmethod
    def of(cls, flat: Tensor, num_prototypes: int) -> Sums:
        """`flat`: [2K + 4D]."""
        mean_output, choices, moments = flat.tensor_split([num_prototypes, 2 * num_prototypes])
        return cls(mean_output, choices, moments.view(2, 2, -1))


@torch.no_grad()
def output_sums(targets: Tensor, student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """`Sums` of one micro-batch, flat: [2K + 4D], float32. Its parts add up over micro-batches and ranks.

    Args:
        targets: [Q, B, K], the teacher's, each sums to 1 over K.
        student_features: [Q, B, D], the student's features of the same views.
        teacher_features: [Q, B, D].
    """
    outputs = targets.flatten(0, 1).float()
    choices = outputs.new_zeros(outputs.shape[1])
    choices.index_add_(0, outputs.argmax(-1), outputs.new_ones(len(outputs)))
    moments = [moment for features in (student_features, teacher_features) for moment in _moments(features)]
    return torch.cat([outputs.sum(0), choices, *moments])


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    unit = F.normalize(features.flatten(0, 1).float(), dim=-1)
    return unit.sum(0), unit.square().sum(0)


@torch.no_grad()
def output_figures(sums: Tensor, num_outputs: int, centre: Tensor) -> dict[str, Tensor]:
    """Figures of the teacher's outputs and of features, 0-d float32.

    `output_entropy`, nats: of the mean target over the global batch; ln K where all prototypes are used alike, 0 where
    one is. `output_perplexity` = exp of it, 1 to K. `prototypes_in_use`: those that are some target's largest, 1 to
    min(K, num_outputs). `student_std` and `teacher_std`: standard deviation of each dimension of the features of L2
    norm 1, its mean over dimensions · √D; 1 where features are spread evenly, 0 where all are equal (as in SimSiam,
    Chen and He 2021, §4.1). `centre_norm`: ‖c‖₂.

    Args:
        sums: [2K + 4D], as `output_sums` gives, over all micro-batches and ranks.
        num_outputs: Q · global batch.
        centre: [K].
    """
    mean_output, choices, moments = Sums.of(sums, len(centre))
    entropy = torch.special.entr(mean_output / num_outputs).sum()
    first, second = (moments / num_outputs).unbind(1)
    spread = _spread(first, second)
    return {
        "output_entropy": entropy,
        "output_perplexity": entropy.exp(),
        "prototypes_in_use": (choices > 0).sum().float(),
        "student_std": spread[0],
        "teacher_std": spread[1],
        "centre_norm": torch.linalg.vector_norm(centre),
    }


def feature_std(features: Tensor) -> float:
    """As `teacher_std` of `output_figures`, of features [N, D] at hand. Waits for the device."""
    first, second = (moment / len(features) for moment in _moments(features[None]))
    return float(_spread(first, second))


def _spread(first: Tensor, second: Tensor) -> Tensor:
    """From the mean of unit features, [..., D], and of their squares."""
    return (second - first.square()).clamp_min(0).sqrt().mean(-1) * math.sqrt(first.shape[-1])


def loss_figures(loss: float, teacher_entropy: float, num_prototypes: int) -> dict[str, float]:
    """`loss_share` = loss / ln K, 1 for a student that knows nothing; `kl` = KL(teacher ‖ student) = loss − entropy of
    the teacher's targets, nats.
    """
    return {"loss_share": loss / math.log(num_prototypes), "kl": loss - teacher_entropy}


class NormGroups:
    """Gradient norms of the parts of a model, from those of its tensors: `embed` (all that makes tokens), `blocks.0` …,
    `norm`, `head.mlp` and `head.last_layer`.
    """

    def __init__(self, model: DinoModel, device: torch.device) -> None:
        """Of the parameters of `model` that take a gradient, in their order."""
        parts = [_part(name) for name, parameter in model.named_parameters() if parameter.requires_grad]
        names = list(dict.fromkeys(parts))
        self._keys = [f"{GRADIENT_NORM}{name}" for name in names]
        self._index = torch.tensor([names.index(part) for part in parts], device=device)

    @torch.no_grad()
    def figures(self, norms: Tensor) -> dict[str, Tensor]:
        """Norms of single tensors, [n] → L2 norm of each part and of all, 0-d, named `gradient_norm/…`."""
        squares = norms.float().square()
        parts = squares.new_zeros(len(self._keys)).index_add_(0, self._index, squares).sqrt()
        return {f"{GRADIENT_NORM}all": squares.sum().sqrt(), **dict(zip(self._keys, parts, strict=True))}


def _part(name: str) -> str:
    """Of the model, that a parameter with this name belongs to."""
    room, part, *rest = name.split(".")
    if room == "head":
        return f"head.{part}"
    if part == "blocks":
        return f"blocks.{rest[0]}"
    return "norm" if part == "norm" else "embed"


@torch.no_grad()
def teacher_distance(
    teacher: Sequence[Tensor], student: Sequence[Tensor], reduce: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """‖θ_t − θ_s‖₂ / ‖θ_s‖₂ over all parameters; 0-d, float32. Takes as much memory as the student for a moment.

    Args:
        teacher: parameters.
        student: parameters in the same order.
        reduce: where each rank holds a share of each tensor: sums a float32 vector over ranks.
    """
    apart = torch._foreach_norm(torch._foreach_sub(list(teacher), list(student)), 2, torch.float32)
    own = torch._foreach_norm(list(student), 2, torch.float32)
    squares = torch.stack([torch.stack(apart), torch.stack(own)]).square().sum(1)
    if reduce is not None:
        squares = reduce(squares)
    distance, length = squares.sqrt().unbind()
    return distance / length.clamp_min(_TINY)


@torch.no_grad()
def rank_me(features: Tensor) -> float:
    """RankMe, 1 to min(N, D): exp of the entropy of the singular values divided by their sum (Garrido et al. 2023,
    eq. 1). How many dimensions are in use; follows the quality of representations without labels. Waits for the device.

    Args:
        features: [N, D], as they are; N ≫ D, at least 10 · D.
    """
    # From D × D instead of N × D; in float64 what squaring loses, 1e-8 of the largest, is below the paper's 1e-7.
    exact = features.double()
    values = torch.linalg.eigvalsh(exact.mT @ exact).clamp_min(0).sqrt()
    shares = values / values.sum().clamp_min(_TINY)
    return float(torch.special.entr(shares).sum().exp())


@torch.no_grad()
def alpha_req(features: Tensor) -> float:
    """The exponent α of the decay of the covariance's eigenvalues, λ_i ∝ i^(−α) (Agrawal et al. 2022). Near 1 where
    representations are good; larger where few dimensions have all the variance, smaller where noise has a share of it.

    A line through log λ_i over log i by least squares, where i weighs 1/i, so that each octave counts alike (as
    Stringer et al. 2019 fit it); of the eigenvalues above 1e-6 of the largest, what is below being rounding. NaN where
    they are fewer than two. Waits for the device.

    Args:
        features: [N, D], as they are; N ≫ D.
    """
    centred = features.double() - features.double().mean(0)
    values = torch.linalg.eigvalsh(centred.mT @ centred).flip(0)
    values = values[values > _FLOOR * values[0]]
    if len(values) < 2:
        return math.nan
    places = torch.arange(1, len(values) + 1, dtype=torch.float64, device=values.device)
    weights = 1 / (places * (1 / places).sum())
    x, y = places.log(), values.log()
    x = x - (weights * x).sum()
    return float(-(weights * x * y).sum() / (weights * x.square()).sum())


def step_flops(architecture: Architecture, config: RunConfig, num_prototypes: int) -> float:
    """Floating-point operations of one step for one sample: what model FLOP/s utilisation (MFU) is counted by.

    Those that a step needs and dinowds does, not those of a model that computes tokens that nobody uses. A
    multiplication with its addition is 2. Of a view with T tokens (n squares or cells, the class token, registers) of
    width D in L blocks with H heads, the forward pass takes

        (L − 1) · (24 · T · D² + 4 · T² · D)                blocks: qkv, projection, MLP; then QKᵀ and AV
        + 24 · D² + 4 · H · T · D                           the last, for the class token (`blocks.class_attention`)
        + 2 · n · inputs · D                                embedding; inputs: 3 · patch², or features of a cell
        + 2 · (D · 2048 + 2048² + 2048 · 256 + 256 · K)     head

    The student's costs three times that (forward, and twice as much backward) for all views, the teacher's once for the
    global ones. Norms, activations, softmax, loss, optimizer, and what is computed again to save memory do not count.
    ViT-S/16, 2 × 224 px + 8 × 96 px, K = 65,536: 1.05e11; with the last block for all tokens it would be 1.14e11.
    """
    global_, local = config.crops.global_, config.crops.local

    def forward(side: int) -> float:
        return _forward_flops(architecture, side // architecture.patch_size, config.student.registers, num_prototypes)

    of_globals, of_locals = global_.count * forward(global_.size), local.count * forward(local.size)
    return 3 * (of_globals + of_locals) + of_globals


def _forward_flops(architecture: Architecture, grid: int, registers: int, num_prototypes: int) -> float:
    width, depth, heads = architecture.size
    cells = grid**2
    tokens = cells + 1 + registers
    inputs = architecture.in_dim * architecture.patch_size**2
    blocks = (depth - 1) * (24 * tokens * width**2 + 4 * tokens**2 * width)
    last = 24 * width**2 + 4 * heads * tokens * width
    head = width * HIDDEN_DIM + HIDDEN_DIM**2 + HIDDEN_DIM * BOTTLENECK_DIM + BOTTLENECK_DIM * num_prototypes
    return float(blocks + last + 2 * cells * inputs * width + 2 * head)


class Peak(NamedTuple):
    """Dense matrix products with float32 sums, TFLOP/s; 0 for what the device has no units for."""

    bf16: float
    fp16: float
    tf32: float
    fp32: float


PEAKS: Mapping[str, Peak] = {
    "B200": Peak(2250, 2250, 1100, 75),
    "GH200": Peak(989, 989, 494, 67),
    "H200 NVL": Peak(835, 835, 417, 60),
    "H200": Peak(989, 989, 494, 67),
    "H100 NVL": Peak(835, 835, 417, 60),
    "H100 PCIe": Peak(756, 756, 378, 51),
    "H100": Peak(989, 989, 494, 67),
    "A100": Peak(312, 312, 156, 19.5),
    "L40S": Peak(362, 362, 183, 91.6),
    "L40": Peak(181, 181, 90.5, 90.5),
    "L4": Peak(121, 121, 60, 30.3),
    "A40": Peak(150, 150, 74.8, 37.4),
    "A10": Peak(125, 125, 62.5, 31.2),
    "RTX 6000 Ada": Peak(364, 364, 182, 91.1),
    "RTX A6000": Peak(155, 155, 77.4, 38.7),
    "RTX 4090": Peak(165, 165, 82.6, 82.6),
    "RTX 3090": Peak(71, 71, 35.6, 35.6),
    "V100-PCIE": Peak(0, 112, 0, 14),
    "V100": Peak(0, 125, 0, 15.7),
    "T4": Peak(0, 65, 0, 8.1),
}
"""Part of a device's name → its makers' figures (data sheets of NVIDIA, without sparsity)."""


def peak_flops(device_name: str, precision: str, tf32: bool) -> float | None:
    """FLOP/s of a device at best; None where it is not known.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it, such as 'NVIDIA H100 80GB HBM3'.
        precision: bf16, fp16 or fp32.
        tf32: float32 products are computed in TF32.
    """
    words = f" {device_name} ".replace("-", " ")
    peak = next((peak for part, peak in PEAKS.items() if f" {part} ".replace("-", " ") in words), None)
    if peak is None:
        return None
    kind = "tf32" if precision == "fp32" and tf32 and peak.tf32 else precision
    return float(getattr(peak, kind)) * 1e12 or None
