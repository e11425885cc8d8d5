"""dinowds: from cohort tarballs to DINO-pretrained Vision Transformers, on WebDataset shards."""

__version__ = "0.1.0"
