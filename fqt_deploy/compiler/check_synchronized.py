"""A model that asks by itself for statistics of all processes gets them, or is refused."""

from __future__ import annotations

from torch import nn

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions


def check_synchronized(module: nn.Module, options: CompileOptions) -> None:
    """FQT212 if ``module`` has ``SyncBatchNorm``, and the step of several processes would take statistics of each."""
    if options.distributed == "off" or options.batch_norm == "synchronized":
        return
    asking = [name for name, part in module.named_modules() if isinstance(part, nn.SyncBatchNorm)]
    if asking:
        raise FqtError(
            f"the model has {len(asking)} SyncBatchNorm, the first is {asking[0]!r}, and batch_norm is 'local': each "
            "process would take statistics of its own",
            code="FQT212",
            hint="add --batch-norm synchronized, or use BatchNorm",
        )
