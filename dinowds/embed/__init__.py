"""A trained backbone + images → features."""
