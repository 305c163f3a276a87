"""Graph rewrites, one per file; their order is in pipelines.py."""

import fqt_deploy.ops.registry  # noqa: F401 - passes name the ops that this defines
