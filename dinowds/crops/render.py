"""Choosing a renderer by its name. Each is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dinowds.crops.recipe import RENDERERS, View
from dinowds.errors import ConfigError


class Renderer(Protocol):
    """Writes one view of `image`, uint8 [H, W, 3], RGB, into `out`, uint8 [size, size, 3]."""

    def __call__(self, image: npt.NDArray[np.uint8], view: View, out: npt.NDArray[np.uint8]) -> None: ...


def get_renderer(name: str) -> Renderer:
    """The renderer that `crops.renderer` names: `cpu` or `pil`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name == "cpu":
        from dinowds.crops import cpu

        return cpu.render
    if name == "pil":
        from dinowds.crops import pil

        return pil.render
    raise ConfigError(f"crops.renderer: found {name!r}, expected one of {', '.join(RENDERERS)}")


def render_views(
    renderer: str, image: npt.NDArray[np.uint8], views: Iterable[View], outs: Iterable[npt.NDArray[np.uint8]]
) -> None:
    """Render each of `views` of `image`, uint8 [H, W, 3], into the array of `outs` at the same place.

    Raises:
        ConfigError: there is no renderer of that name.
        ValueError: there are not as many `outs` as `views`.
    """
    render = get_renderer(renderer)
    for view, out in zip(views, outs, strict=True):
        render(image, view, out)
