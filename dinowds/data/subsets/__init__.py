"""Named selections of a dataset."""
