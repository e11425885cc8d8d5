"""Weights and checkpoints of strangers."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Iterator

import numpy as np
import torch
from safetensors.torch import save

from dinowds.errors import CheckpointError
from dinowds.model.weights.content import read_content, read_json
from dinowds.model.weights.read import read_weights
from dinowds.train.checkpoint import FORMAT_VERSION, load_checkpoint
from tests.faults.fuzz.targets import scratch


def weights(data: bytes) -> None:
    path = scratch(data, "weights.bin")
    for reader in (read_content, read_json, read_weights, load_checkpoint):
        with contextlib.suppress(CheckpointError):
            reader(path)


def weights_seeds() -> Iterator[bytes]:
    tensors = {"cls_token": torch.zeros(1, 1, 4), "norm.weight": torch.ones(4, dtype=torch.float16)}
    for notes in ('{"kind": "image"}', "{", "3", "[" * 100_000):
        yield save(tensors, {"dinowds": notes})
    for is_zip in (True, False):
        content = io.BytesIO()
        args = argparse.Namespace(arch="vit_small")
        torch.save(
            {"teacher": tensors, "args": args, "lr": np.float64(0.1)}, content, _use_new_zipfile_serialization=is_zip
        )
        yield content.getvalue()
    content = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, "teacher": tensors, "step": 3}, content)
    yield content.getvalue()
