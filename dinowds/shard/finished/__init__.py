"""Changes of datasets that are there: merge, withdraw, append."""
