"""`dinowds embed patch`: a feature for each sample."""
