"""`dinowds embed region`: grids of features, for hierarchical training."""
