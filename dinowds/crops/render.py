"""Choosing a renderer by its name. Each is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dinowds.crops.recipe import RENDERERS, Views
from dinowds.errors import ConfigError


class Renderer(Protocol):
    """Writes `views`, [V] records, of `image`, uint8 [H, W, 3], RGB, into their places, uint8 [3, size, size] each.

    The image may have been decoded at 1 / `reduction` of its size, to which the records still refer; not for `pil`.
    """

    def __call__(
        self, image: npt.NDArray[np.uint8], views: Views, outs: Sequence[npt.NDArray[np.uint8]], reduction: int = 1
    ) -> None: ...


def get_renderer(name: str) -> Renderer:
    """The renderer that `crops.renderer` names: `cpu`, `device` (on this processor, for tests and pictures) or `pil`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name == "cpu":
        from dinowds.crops import cpu

        return cpu.render
    if name == "device":
        from dinowds.crops import device

        return device.render
    if name == "pil":
        from dinowds.crops import pil

        return pil.render
    names = [known for known in RENDERERS if known != "auto"]
    raise ConfigError(f"crops.renderer: found {name!r}, expected one of {', '.join(names)}")
