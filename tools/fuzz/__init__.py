"""Damaged and untrue files, made from good ones by a seed, for all that reads files: ``python -m tools.fuzz``."""
