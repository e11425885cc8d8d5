"""What is embedded: no register is taken for a patch token."""

from __future__ import annotations

from pathlib import Path

import torch

from dinowds.embed.encoder import Encoder
from dinowds.model.architecture import Architecture, Size
from dinowds.model.vit import build_backbone
from dinowds.model.weights import load_backbone, read_weights
from tests.model.weights.files import save


def test_encoder__gives_class_and_patch_tokens_without_registers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    architecture = Architecture("image", Size(192, 1, 3), 3, 8, 4, registers=4, layer_scale=True)
    state = build_backbone(architecture, initial_scale=1.0).state_dict()
    state = {name: value + 0.1 * torch.randn_like(value) for name, value in state.items()}
    about = {"architecture": {"num_heads": 3, "pos_interpolation": "timm"}}
    path = save(tmp_path / "a.pt", {"format_version": 1, "about": about, "teacher": state, "student": state})
    weights = read_weights(path)
    images = torch.randint(256, (3, 32, 24, 3), dtype=torch.uint8)
    pixels = ((images / 255 - torch.tensor(weights.mean)) / torch.tensor(weights.std)).permute(0, 3, 1, 2)
    tokens = load_backbone(weights).forward_features(pixels.contiguous())
    encoder = Encoder(weights, torch.device("cpu"), "fp32", batch_size=2)
    assert encoder.tokens(images).shape == (3, 12, 192)
    torch.testing.assert_close(encoder.tokens(images), tokens[:, 1:], rtol=0, atol=1e-4)
    torch.testing.assert_close(encoder.features(images), tokens[:, 0], rtol=0, atol=1e-4)
    # a change in the square at row 3, column 2 of 3 changes the last token most
    images[1:] = images[0]
    images[1, 24:, 16:] = 255 - images[1, 24:, 16:]
    before, after = encoder.tokens(images)[:2]
    assert int((after - before).norm(dim=1).argmax()) == 11
