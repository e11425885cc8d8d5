"""Backbones and the DINO head."""
