"""Ranks that fail, stop, lag, or are not like the others."""
