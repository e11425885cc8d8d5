"""Where a dataset goes, and what is unfinished there."""
