"""A dataset on disk → an exact, elastic stream of decoded samples."""
