"""Weights that travel: read from and written for other systems, by name."""

from dinowds.model.weights.export import Export, export_weights, with_mpp
from dinowds.model.weights.fold import fold_normalization
from dinowds.model.weights.read import read_weights
from dinowds.model.weights.weights import Weights, load_backbone

__all__ = [
    "Export", "Weights", "export_weights", "fold_normalization", "load_backbone", "read_weights", "with_mpp",
]  # fmt: skip
