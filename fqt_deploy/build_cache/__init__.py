"""Artifacts that were compiled before: the same model with the same options is copied, not compiled again."""
