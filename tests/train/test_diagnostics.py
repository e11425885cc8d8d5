"""Figures against plain numpy formulae."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dinowds.config import load_config
from dinowds.model.architecture import Architecture, Size
from dinowds.model.dino import architecture_of, build_pair
from dinowds.train.diagnostics import (
    NormGroups,
    alpha_req,
    feature_std,
    loss_figures,
    output_figures,
    output_sums,
    peak_flops,
    rank_me,
    step_flops,
    teacher_distance,
)

CPU = torch.device("cpu")
Q, B, K, D = 2, 12, 7, 5


def outputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(Q, B, K, generator=generator).mul(3).softmax(-1)
    student, teacher = (torch.randn(Q, B, D, generator=generator) * 4 + 1 for _ in range(2))
    return targets, student, teacher


def plain_std(features: Tensor) -> float:
    unit = features.numpy().reshape(-1, D).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return float(unit.std(axis=0).mean() * math.sqrt(D))


def test_output_figures__equal_the_formulae() -> None:
    targets, student, teacher = outputs()
    centre = torch.randn(K)
    figures = output_figures(output_sums(targets, student, teacher), Q * B, centre)
    mean = targets.numpy().reshape(-1, K).mean(0)
    entropy = -(mean * np.log(mean)).sum()
    expected = {
        "output_entropy": entropy,
        "output_perplexity": math.exp(entropy),
        "prototypes_in_use": len(set(targets.numpy().reshape(-1, K).argmax(1))),
        "student_std": plain_std(student),
        "teacher_std": plain_std(teacher),
        "centre_norm": np.linalg.norm(centre.numpy()),
    }
    assert {name: value.item() for name, value in figures.items()} == pytest.approx(expected, rel=1e-5)
    assert plain_std(student) != pytest.approx(plain_std(teacher), rel=1e-3)


def test_output_sums__add_up_over_micro_batches() -> None:
    whole = output_sums(*outputs())
    parts = [output_sums(*(tensor[:, start : start + 5] for tensor in outputs())) for start in range(0, B, 5)]
    torch.testing.assert_close(torch.stack(parts).sum(0), whole)
    assert whole.shape == (2 * K + 4 * D,)


def test_output_figures__of_the_two_collapses() -> None:
    equal = torch.ones(Q, B, D)
    one = torch.zeros(Q, B, K)
    one[..., 3] = 1
    figures = output_figures(output_sums(one, equal, equal), Q * B, torch.zeros(K))
    found = {name: value.item() for name, value in figures.items()}
    assert found["output_perplexity"] == found["prototypes_in_use"] == 1
    assert found["output_entropy"] == 0
    assert found["student_std"] < 1e-3
    uniform = torch.full((Q, B, K), 1 / K)
    figures = output_figures(output_sums(uniform, equal, equal), Q * B, torch.zeros(K))
    assert figures["output_entropy"].item() == pytest.approx(math.log(K))
    assert figures["output_perplexity"].item() == pytest.approx(K)


def test_output_figures__features_spread_evenly_have_std_1() -> None:
    features = torch.randn(Q, 4000, 32, generator=torch.Generator().manual_seed(0))
    targets = torch.full((Q, 4000, K), 1 / K)
    figures = output_figures(output_sums(targets, features, features), Q * 4000, torch.zeros(K))
    assert figures["student_std"].item() == pytest.approx(1, abs=0.01)


def test_loss_figures__share_of_ln_k_and_kl() -> None:
    assert loss_figures(3.0, 2.0, 64) == pytest.approx({"loss_share": 3 / math.log(64), "kl": 1.0})


@pytest.mark.parametrize("kind", ["image", "region"])
def test_norm_groups__every_tensor_in_its_part(kind: str) -> None:
    config = load_config(None, ["student.out_dim=64"])
    shape = Architecture("image" if kind == "image" else "region", Size(192, 2, 3), 3, 8 if kind == "image" else 1, 2)
    model = build_pair(shape, config.student)[0]
    norms = {name: float(index + 1) for index, (name, _) in enumerate(model.named_parameters())}
    found = NormGroups(model, CPU).figures(torch.tensor(list(norms.values())))

    def norm_of(*starts: str) -> float:
        return math.sqrt(sum(norm**2 for name, norm in norms.items() if name.startswith(starts)))

    embedding = ("backbone.patch_embed", "backbone.phi", "backbone.cls", "backbone.pos")
    expected = {
        "gradient_norm/all": norm_of(""),
        "gradient_norm/embed": norm_of(*embedding),
        "gradient_norm/blocks.0": norm_of("backbone.blocks.0."),
        "gradient_norm/blocks.1": norm_of("backbone.blocks.1."),
        "gradient_norm/norm": norm_of("backbone.norm"),
        "gradient_norm/head.mlp": norm_of("head.mlp"),
        "gradient_norm/head.last_layer": norm_of("head.last_layer"),
    }
    assert list(found) == list(expected)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected)


def test_norm_groups__leave_out_what_takes_no_gradient() -> None:
    config = load_config(None, ["student.out_dim=64", "student.norm_last_layer=true"])
    model = build_pair(Architecture("image", Size(192, 1, 3), 3, 8, 2), config.student)[0]
    num_trained = sum(parameter.requires_grad for parameter in model.parameters())
    found = NormGroups(model, CPU).figures(torch.ones(num_trained))
    assert found["gradient_norm/head.last_layer"].item() == 1  # weight_v alone


def test_teacher_distance__whole_and_in_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = ([torch.randn(4, 6, generator=generator), torch.randn(8, generator=generator)] for _ in range(2))
    flat_student, flat_teacher = (np.concatenate([t.numpy().ravel() for t in ts]) for ts in (student, teacher))
    expected = np.linalg.norm(flat_teacher - flat_student) / np.linalg.norm(flat_student)
    assert teacher_distance(teacher, student).item() == pytest.approx(expected)
    assert teacher_distance(student, student).item() == 0
    shares = [([t[: len(t) // 2] for t in ts], [t[len(t) // 2 :] for t in ts]) for ts in (teacher, student)]
    vectors: list[Tensor] = []

    def kept(vector: Tensor) -> Tensor:
        vectors.append(vector)
        return vector

    for rank in range(2):
        teacher_distance(shares[0][rank], shares[1][rank], kept)

    def summed(_: Tensor) -> Tensor:
        return torch.stack(vectors).sum(0)

    assert teacher_distance(shares[0][0], shares[1][0], summed).item() == pytest.approx(expected)


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_rank_me__equals_the_paper_s_formula(rank: int) -> None:
    rng = np.random.default_rng(rank)
    features = rng.normal(size=(300, rank)) @ rng.normal(size=(rank, 20)) + 0.1
    values = np.linalg.svd(features, compute_uv=False)
    shares = values / values.sum() + 1e-7
    expected = math.exp(-(shares * np.log(shares)).sum())
    assert rank_me(torch.from_numpy(features).float()) == pytest.approx(expected, rel=1e-3)
    assert expected < rank + 1.01


def test_rank_me__orthogonal_dimensions_count_fully() -> None:
    assert rank_me(torch.eye(16).repeat(4, 1)) == pytest.approx(16)


def test_step_flops__of_the_reference_recipe() -> None:
    """As torch's own counter says of linear layers and convolutions, attention and the factors added by hand."""
    config = load_config()
    found = step_flops(architecture_of(config), config, 65536)
    of_all_tokens, of_class_token = (
        sum(
            passes
            * ((24 * tokens * 384**2 + 4 * tokens**2 * 384) if is_whole else (24 * 384**2 + 4 * 6 * tokens * 384))
            for passes, tokens in ((2 * 3 + 2, 1 + 14**2), (8 * 3, 1 + 6**2))
        )
        for is_whole in (True, False)
    )
    assert found + of_all_tokens - of_class_token == pytest.approx(113.8e9, rel=1e-3)
    assert found == pytest.approx(104.7e9, rel=1e-3)


@pytest.mark.parametrize(("grid", "registers"), [(2, 0), (3, 0)])
def test_step_flops__as_torch_counts_them(grid: int, registers: int) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    overrides = [
        "student.arch=vit_tiny", "student.depth=2", "student.patch_size=8", f"student.registers={registers}",
        f"crops.global.size={8 * grid}", "crops.local.count=0", "student.drop_path_rate=0",
    ]  # fmt: skip
    config = load_config(None, overrides)
    architecture = architecture_of(config)
    student = build_pair(architecture, config.student)[0]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # of plain products, which it counts
        student([torch.zeros(2, 3, 8 * grid, 8 * grid)])
    # 3 for the student, 1 for the teacher
    assert step_flops(architecture, config, 65536) == pytest.approx(4 * counter.get_total_flops(), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", True, 989),
        ("NVIDIA H100 PCIe", "bf16", True, 756),
        ("NVIDIA H200", "fp32", True, 494),
        ("NVIDIA A100-SXM4-80GB", "fp32", False, 19.5),
        ("Tesla V100-SXM2-32GB", "fp16", True, 125),
        ("Tesla V100-SXM2-32GB", "fp32", True, 15.7),
        ("Tesla V100-SXM2-32GB", "bf16", True, None),
        ("NVIDIA L40S", "bf16", True, 362),
        ("NVIDIA L4", "bf16", True, 121),
        ("NVIDIA GeForce RTX 4090", "bf16", True, 165),
        ("NVIDIA T400", "fp32", True, None),
    ],
)
def test_peak_flops__of_devices_by_name(name: str, precision: str, tf32: bool, teraflops: float | None) -> None:
    assert peak_flops(name, precision, tf32) == (teraflops and pytest.approx(teraflops * 1e12))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_req__is_the_exponent_of_the_spectrum(alpha: float) -> None:
    """Of centred columns that are orthogonal, with variances i^(−α); turned and moved, which changes nothing."""
    torch.manual_seed(0)
    noise = torch.randn(400, 30, dtype=torch.float64)
    columns, _ = torch.linalg.qr(noise - noise.mean(0))
    turn, _ = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64))
    features = columns * torch.arange(1, 31) ** (-alpha / 2) @ turn + 3
    assert alpha_req(features) == pytest.approx(alpha, rel=1e-6)


def test_alpha_req__of_rank_1_is_none() -> None:
    assert math.isnan(alpha_req(torch.arange(20.0)[:, None] * torch.ones(1, 4)))


def test_feature_std__is_that_of_a_run_s_figures() -> None:
    features = torch.randn(2, 16, 8)
    targets = torch.rand(2, 16, 4).softmax(-1)
    figures = output_figures(output_sums(targets, features, 3 * features + 1), 32, torch.zeros(4))
    assert feature_std(features.flatten(0, 1)) == pytest.approx(float(figures["student_std"]))
    assert feature_std(3 * features.flatten(0, 1) + 1) == pytest.approx(float(figures["teacher_std"]))
