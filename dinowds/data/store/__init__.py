"""Payloads of samples, from local and remote shards."""
