"""Pass 1: what a dataset is made from, listed and checked."""
