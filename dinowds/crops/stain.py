"""Jitter of the stains of histology: haematoxylin, eosin and DAB (Tellez et al. 2018, arXiv:1808.05896)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density of red, green and blue for one unit of each stain (Ruifrok & Johnston 2001)."""

_UNMIX = np.linalg.inv(STAINS)


def stain_maps(factors: NDArray[Any], shifts: NDArray[Any]) -> NDArray[np.float64]:
    """What factors and shifts of the three stains, […, 3] each, do to optical density: […, 3, 4], A | b of A d + b."""
    linear = np.swapaxes(_UNMIX @ (factors[..., :, None] * STAINS), -1, -2)
    constant = shifts @ STAINS
    return np.concatenate([linear, constant[..., None]], axis=-1)


def optical_density() -> NDArray[np.float32]:
    """float32 [256]: -ln(value / 255) of every grey level; that of 0 is that of 1."""
    return -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)


def concentrations(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [..., 3], RGB → float32 [..., 3]: how much of each stain is there, by optical density (base e)."""
    return optical_density()[pixels] @ _UNMIX.astype(np.float32)


def stained(pixels: NDArray[np.uint8], stain_map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """uint8 [..., 3], RGB, with the optical density of each pixel sent through a `stain_map`, float32 [3, 4]."""
    density = optical_density()[pixels] @ stain_map[:, :3].T + stain_map[:, 3]
    return np.asarray(np.rint(255 * np.exp(-np.maximum(density, 0))), np.uint8)
