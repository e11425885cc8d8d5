"""Look-ups in samples.parquet."""
