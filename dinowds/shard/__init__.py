"""Cohort tars and folders → a sharded, indexed dataset."""
