"""Whether an export gives its consumer the features of the original."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinowds.errors import OutputError
from dinowds.model.architecture import Architecture, describe_architecture
from dinowds.model.pixels import Channels, normalise
from dinowds.model.weights.weights import Weights, load_backbone

TOLERANCE = 1e-4
"""Of the largest feature. Rounding a folded patch embedding moves features by about 1e-6; another tensor by 1e-1."""
_NUM_SAMPLES = 2
_SECONDS = 600


def check_export(
    path: Path, original: Weights, written: Weights, timm_call: tuple[str, dict[str, Any]] | None
) -> float:
    """Compare what a consumer of the export `path` gets with the features of `original`.

    Args:
        path: a folder of timm, or a file of torch.save.
        original: with its own normalisation; `written`: with that of the export.
        timm_call: architecture and arguments for `timm.create_model`, for a folder of timm.

    Returns:
        The largest difference, as a share of the largest feature.

    Raises:
        OutputError: it cannot be loaded, or the features differ.
    """
    grid, interpolation = written.architecture.grid, written.architecture.pos_interpolation
    columns = [grid, grid + 1] if timm_call and interpolation == "timm" else [grid]  # others know one grid alone
    request = {
        "path": str(path),
        "architecture": describe_architecture(written.architecture),
        "mean": written.mean,
        "std": written.std,
        "columns": columns,
        "timm": timm_call,
    }
    expected = known_features(load_backbone(original), original.architecture, original.mean, original.std, columns)
    answers = _ask(original.path, request)
    differences = [_difference(torch.tensor(features), expected) for features in answers.values()]
    if not all(difference <= TOLERANCE for difference in differences):  # NaN neither
        found = ", ".join(f"{call}: {difference:.1e}" for call, difference in zip(answers, differences, strict=True))
        raise OutputError(
            f"{original.path}: a consumer of its export gets other features ({found} of the largest, at most "
            f"{TOLERANCE:.0e} expected); nothing was written"
        )
    return max(differences)


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest, as a share of the largest feature."""
    if found.shape != expected.shape:
        return float("inf")
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _ask(name: str, request: dict[str, Any]) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONSAFEPATH": "1"}
    try:
        process = subprocess.run(
            [sys.executable, "-m", "dinowds.model.weights.consumer"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env=environment,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OutputError(
            f"{name}: a consumer did not load its export within {_SECONDS} s; nothing was written"
        ) from None
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise OutputError(f"{name}: a consumer cannot load its export ({reason}); nothing was written")
    answer: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return answer


@torch.inference_mode()
def known_features(
    model: nn.Module, architecture: Architecture, mean: Channels, std: Channels, columns: Sequence[int]
) -> Tensor:
    """[2 · len(columns), D], of inputs that are always the same: noise, which shows every weight.

    On grids of `architecture.grid` rows and each of `columns`.
    """
    generator = torch.Generator().manual_seed(0)
    return torch.cat([model(_noise(architecture, mean, std, count, generator)) for count in columns])


def _noise(
    architecture: Architecture, mean: Channels, std: Channels, columns: int, generator: torch.Generator
) -> Tensor:
    height, width = (count * architecture.patch_size for count in (architecture.grid, columns))
    if architecture.kind == "region":
        return torch.randn(_NUM_SAMPLES, height, width, architecture.in_dim, generator=generator)
    images = torch.randint(256, (_NUM_SAMPLES, 3, height, width), generator=generator, dtype=torch.uint8)
    return normalise(images, torch.float32, mean, std)
