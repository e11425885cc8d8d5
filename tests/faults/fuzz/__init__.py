"""Hostile bytes by the million: coverage-guided (atheris) and drawn by rules (hypothesis)."""
