"""The same model for consumers that normalise images otherwise, or know no LayerScale."""

from __future__ import annotations

from dataclasses import replace

import torch

from dinowds.errors import ConfigError
from dinowds.model.pixels import Channels
from dinowds.model.weights.weights import Weights, fingerprint_of

_SCALED = {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2"}
"""Each factor of LayerScale, and the Linear whose output it multiplies."""
_WEIGHT, _BIAS = "patch_embed.proj.weight", "patch_embed.proj.bias"


def fold_normalization(weights: Weights, mean: Channels, std: Channels) -> Weights:
    """The same model for images that are normalised with `mean` and `std`: for consumers that force theirs.

    A pixel p of channel c came in as (p - m_c) / s_c and now comes in as y = (p - mean_c) / std_c, so the patch
    embedding w, b sees the same with

        w'_c = w_c · std_c / s_c            b' = b + Σ_c (mean_c - m_c) / s_c · Σ_ij w_c,ij

    which is exact, as patches tile the image without padding. Computed in float64, kept in float32.

    Raises:
        ConfigError: the weights are of regions, which are not normalised.
    """
    if weights.architecture.kind != "image":
        raise ConfigError(f"{weights.path}: a model of regions has no normalisation of images to fold")
    own_mean, own_std, new_mean, new_std = (
        torch.tensor(channels, dtype=torch.float64) for channels in (weights.mean, weights.std, mean, std)
    )
    kernel, bias = weights.backbone[_WEIGHT].double(), weights.backbone[_BIAS].double()
    shift = torch.einsum("dcij,c->d", kernel, (new_mean - own_mean) / own_std)
    folded = {
        _WEIGHT: torch.einsum("dcij,c->dcij", kernel, new_std / own_std).float(),
        _BIAS: (bias + shift).float(),
    }
    backbone = {**weights.backbone, **folded}
    fingerprint = fingerprint_of(backbone, weights.architecture, mean, std)
    return replace(weights, backbone=backbone, mean=mean, std=std, fingerprint=fingerprint)


def fold_layer_scale(weights: Weights) -> Weights:
    """The same model without LayerScale: γ · (W x + b) = (γ W) x + γ b. Computed in float64, kept in float32."""
    architecture, backbone = replace(weights.architecture, layer_scale=False), dict(weights.backbone)
    for block in (f"blocks.{i}." for i in range(architecture.size.depth)):
        for factor, layer in _SCALED.items():
            gamma = backbone.pop(block + factor).double()
            for name in (f"{block}{layer}.weight", f"{block}{layer}.bias"):
                backbone[name] = torch.einsum("d...,d->d...", backbone[name].double(), gamma).float()
    fingerprint = fingerprint_of(backbone, architecture, weights.mean, weights.std)
    return replace(weights, architecture=architecture, backbone=backbone, fingerprint=fingerprint)
