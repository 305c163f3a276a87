"""The places of things in the folder that is carried to the GPU, and the products and steps that are measured."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

PRODUCT_TABLE = "products.json"
"""The products that were built: forms, the default first, and shapes."""
CASES = "cases.npz"
CASE_TABLE = "cases.json"
LIBRARIES = "lib"
PACKAGES = "packages"
CHECKED = "digits"
"""The artifact whose kernels are compared one by one; the folder also holds the cases."""

PEAK = "peak"
"""Kernel of each library of products that does nothing but multiply bits."""
PEAK_BLOCKS, PEAK_THREADS, PEAK_ROUNDS, PEAK_CHAINS = 528, 256, 2048, 8


@dataclass(frozen=True)
class Product:
    """One matrix product: [m, k] by [n, k].

    Attributes:
        origin: the layer that it is, or ``square``.
        m: rows, such as positions of a batch.
        n: columns, output channels.
        k: length of the contraction.
    """

    origin: str
    m: int
    n: int
    k: int

    @property
    def symbol(self) -> str:
        """The name of the product's function in a library of products."""
        return f"product_{self.m}_{self.n}_{self.k}"

    @property
    def operations(self) -> int:
        """The number of operations: multiply-accumulates times two."""
        return 2 * self.m * self.n * self.k

    def to_json(self) -> dict[str, object]:
        """The fields by name, for JSON."""
        return asdict(self)


SHAPES = (
    Product("vgg16 128", 131072, 128, 1152),
    Product("vgg16 256", 32768, 256, 2304),
    Product("vgg16 512", 8192, 512, 4608),
    Product("resnet18 64", 262144, 64, 576),
    Product("resnet18 512", 4096, 512, 4608),
    Product("bert attention", 8192, 768, 768),
    Product("bert up", 8192, 3072, 768),
    Product("bert down", 8192, 768, 3072),
    *(Product("square", size, size, size) for size in (1024, 2048, 4096, 8192, 16384)),
)
"""Products of forward passes (batch 512 for VGG16, 256 for ResNet-18, 64 x 128 tokens for BERT-base), and squares."""

STEPS: dict[str, tuple[str, int, dict[str, str]]] = {
    "vgg16-once": ("vgg16", 512, {"agp": "once"}),
    "vgg16-sampled": ("vgg16", 512, {"agp": "sampled"}),
}
"""Name -> example, batch and settings of the steps that are timed; the first also with other forms of the products."""


def products_library(folder: Path, form: str) -> Path:
    """The library of the products in one form."""
    return folder / f"products_{form}.so"


def step_name(name: str, form: str, default: str) -> str:
    """Artifact of the step ``name`` with the products in one form."""
    return name if form == default else f"{name}-{form}"


def use(folder: Path) -> None:
    """Let the runtime's packages and libraries in ``folder`` be found, after those that are installed.

    Raises:
        SystemExit: with a message, if the folder holds no benchmark.
    """
    if not (folder / PRODUCT_TABLE).is_file():
        raise SystemExit(f"bench_gpu: {folder} holds no benchmark: make it with --build {folder}")
    sys.path.append(str((folder / PACKAGES).resolve()))
    os.environ["TVM_FFI_DISABLE_TORCH_C_DLPACK"] = "1"  # would compile an extension for older versions of PyTorch
    os.environ.setdefault("FQT_RUNTIME_LIBRARIES", str((folder / LIBRARIES).resolve()))


def artifact(folder: Path, name: str) -> Path:
    """The artifact called ``name``, without its state: that is made where it runs, too large to carry."""
    return folder / f"{name}.fqt"
