"""Graph rewrites, one per file; their order is in pipelines.py."""
