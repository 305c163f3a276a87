"""Keeps pytest out of the links at the root: their files belong to ``fqt_deploy`` and must load under one name only."""

collect_ignore = ["passes", "runtime", "targets"]
