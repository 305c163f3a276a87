"""Object code of kernels that was compiled before, in the user's cache folder.

An entry is the object code of one batch of kernels. Its key is a digest of everything that the code comes from: the
kernels, the target with its tuned tiles, the sources of the compiler, the versions of TVM and LLVM.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm.target import codegen

from fqt_deploy.core.file_cache import FileCache, cache_limit, compiler_sources, digest
from fqt_deploy.core.user_cache import user_cache
from fqt_deploy.targets.base import Target

LIMIT_VARIABLE = "FQT_KERNEL_CACHE"
"""Environment variable with the megabytes that the entries may take; 0 switches the cache off."""
DEFAULT_LIMIT = 512
"""Megabytes that the entries may take by default: about two hundred variants of a ResNet-18."""
ENDING = ".kernels"


def kernel_cache(target: Target) -> FileCache | None:
    """The cache for ``target``; None if it is switched off, or files of the compiler changed since it was started.

    Raises:
        FqtError: FQT202 if the limit is not a whole number of megabytes.
    """
    limit = cache_limit(LIMIT_VARIABLE, DEFAULT_LIMIT)
    sources = compiler_sources() if limit else None
    if sources is None:
        return None
    return FileCache(user_cache() / "kernels", limit, ENDING, digest(sources, *_environment(target)))


def _environment(target: Target) -> tuple[str, ...]:
    """All that scheduling and code generation go by besides the kernels, as texts."""
    return (
        f"{tvm.__version__} {tvm_ffi.__version__} {codegen.llvm_version_major()}",
        f"{type(target).__name__} {target.name} {target.tvm_target} {target.features}",
        " ".join(f"{type(rule).__qualname__}{vars(rule)}" for rule in target.rules),
        repr(sorted(target.tuned.items())),
    )
