"""How far a JPEG may be reduced while it is decoded, given the views that are made of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from dinowds.crops.recipe import Views

REDUCTIONS = (1, 2, 4, 8)
"""Of width and height: what libjpeg's scaled inverse DCT offers in whole powers of two."""

MARGIN = 2.0
"""By how much every view still shrinks its box of the reduced image, at least.

A reduced image lacks what the inverse DCT left out, and the wider the resampling filter is after it, the less of that
would have been left anyway. With DINO's recipe on photographs and tissue of 1,024–2,048 px, views of a reduced decode
differ from those of a full one by 0.23 grey levels of 255 in the mean and 0.52 at most, on fine texture (grass, gravel)
by 0.94 at most. With a margin of 1.5 these are 0.30, 0.93 and 1.90. See docs/crops.md."""

_LEAST_SHRINK = [reduction * MARGIN for reduction in REDUCTIONS[1:]]


def best_reduction(views: Views) -> Any:
    """The largest of `REDUCTIONS` at which every view of an image still shrinks its box by `MARGIN` or more.

    Args:
        views: records of one image, [V], or of many, [B, V].

    Returns:
        np.int64, or int64 [B].
    """
    shrink = (np.minimum(views["height"], views["width"]) / views["size"]).min(axis=-1)
    return 1 << np.searchsorted(_LEAST_SHRINK, shrink, side="right")
