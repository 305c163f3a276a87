"""Compile everything that the benchmark runs; needs nvcc and the compiler, but no GPU."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from tvm import te, tirx

import fqt_deploy.ops.registry  # noqa: F401 - defines the ops
from fqt_deploy.codegen.build import lower_relax
from fqt_deploy.codegen.to_relax import to_relax
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.compiler.verify import kernel_cases
from fqt_deploy.ops.lib.packed_words import PANEL, panel_count, word_count
from fqt_deploy.ops.products.binary_conv2d import BinaryConv2d
from fqt_deploy.settings import merge_settings, options_of
from fqt_deploy.targets.cuda.bit_operand import Tile
from fqt_deploy.targets.cuda.choose_form import FORMS
from fqt_deploy.targets.cuda.features import ALTERNATIVES, cuda_features
from fqt_deploy.targets.cuda.kernel_builder import (
    as_int32,
    launch,
    local,
    loop,
    sequence,
    store,
    with_buffers,
)
from fqt_deploy.targets.cuda.options import CudaOptions
from fqt_deploy.targets.cuda.warp_forms import WarpForm
from fqt_deploy.targets.kernel_arguments import ARGUMENTS, encoded
from fqt_deploy.targets.registry import make_target
from tools.examples import compile_example, load_example
from tools.gpu_bench import layout

Tell = Callable[[str], None]
CHECKED_BATCH = 32
CHAINS = layout.PEAK_CHAINS


def build(folder: Path, architectures: str, python: str, tell: Tell) -> None:
    """Fill ``folder``.

    Args:
        folder: the folder to write; what an earlier build left there is replaced.
        architectures: the architectures of the GPU, such as ``sm_90a``.
        python: version of Python where it will run, such as ``3.12``.
        tell: told the phases.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tell("runtime libraries")
    _libraries(folder / layout.LIBRARIES)
    _packages(folder / layout.PACKAGES, python)
    forms = _forms(architectures)
    for form in forms:
        tell(f"products, {form}")
        _products(folder, architectures, form)
    table = {"forms": forms, "shapes": [shape.to_json() for shape in layout.SHAPES]}
    (folder / layout.PRODUCT_TABLE).write_text(json.dumps(table, indent=1))
    tell("cases of every kernel")
    _checked(folder, architectures)
    default, *others = forms
    steps = [(name, default) for name in layout.STEPS] + [(next(iter(layout.STEPS)), form) for form in others]
    for name, form in steps:
        example, batch, settings = layout.STEPS[name]
        name = layout.step_name(name, form, default)
        tell(f"step {name}")
        given = {**settings, "target": "cuda", "arch": _in_form(architectures, form, default)}
        target = layout.artifact(folder, name)
        compile_example(load_example(example, batch), given, target)
        (target / "state.safetensors").unlink()


def _forms(architectures: str) -> list[str]:
    """Forms of the 1-bit products that all of ``architectures`` have, the default first."""
    features = cuda_features(architectures)
    others = [set(ALTERNATIVES.get(name, ())) for name in features.architectures]
    return [features.bit_forms[0], *sorted(set.intersection(*others))]


def _in_form(architectures: str, form: str, default: str) -> str:
    return architectures if form == default else f"{architectures}:{form}"


def _libraries(folder: Path) -> None:
    folder.mkdir()
    source = Path(str(tvm.__file__)).parent / "lib"
    for name in ("libtvm_runtime.so", "libtvm_runtime_cuda.so"):
        shutil.copy2(source / name, folder)
    import nvidia

    for location in nvidia.__path__:
        runtime = Path(location) / "cu13" / "lib" / "libcudart.so.13"
        if runtime.is_file():
            shutil.copy2(runtime, folder)


def _packages(folder: Path, python: str) -> None:
    """The packages that the runtime imports, for another version of Python."""
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in ("apache-tvm-ffi", "safetensors")]
    with tempfile.TemporaryDirectory() as downloads:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", python, "--dest", downloads, *wanted]
        subprocess.run(command, check=True)
        for wheel in Path(downloads).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)


def _products(folder: Path, architectures: str, form: str) -> None:
    target = make_target(
        "cuda", CudaOptions(arch=_in_form(architectures, form, cuda_features(architectures).bit_forms[0]))
    )
    functions = {shape.symbol: _product(target, shape) for shape in layout.SHAPES}
    functions[layout.PEAK] = _peak(cuda_features(architectures).bit_forms[0]).with_attr("global_symbol", layout.PEAK)
    executable = target.compile(tvm.IRModule(functions), lower_relax)
    library = layout.products_library(folder, form)
    executable.export_library(str(library))
    target.check_library(library)


def _product(target: Any, shape: layout.Product) -> tirx.PrimFunc:
    """A linear layer on bits: signs [1, 1, m, words] and panels [panels, words, 16] to sums [1, 1, m, n]."""
    words = word_count(shape.k)
    arguments = (shape.k, shape.n, [1, 1], [1, 1], [0, 0])
    x = te.placeholder((1, 1, shape.m, words), "int32", name="x")
    w = te.placeholder((panel_count(shape.n), words, PANEL), "int32", name="w")
    attributes = {
        "fqt.op": "binary_conv2d",
        "fqt.outputs": 1,
        ARGUMENTS: encoded(torch.ops.fqt.binary_conv2d.default, [x, w, *arguments]),
        "tirx.noalias": True,
    }
    function = te.create_prim_func([x, w, BinaryConv2d(x, w, *arguments).compute()]).with_attrs(attributes)
    return target.schedule(function).with_attr("global_symbol", shape.symbol)


def _peak(form: str) -> tirx.PrimFunc:
    """Independent chains of products of bits in registers: what the tensor cores can do at most in ``form``."""
    result = tirx.decl_buffer((layout.PEAK_BLOCKS, layout.PEAK_THREADS), "int32", "result")
    tile, multiplier = Tile(1, 1, CHAINS, 1, 1.0), FORMS[form]
    assert isinstance(multiplier, WarpForm)

    def body(block: Any, thread: Any) -> Any:
        left, right = (local(extents, "uint32", name) for name, extents in (("left", (CHAINS, 4)), ("right", (1, 2))))
        sums = local((CHAINS, 1, 4), "uint32", "sums")
        word = thread.astype("uint32")
        start = sequence(
            *(store(left, word, i, r) for i in range(CHAINS) for r in range(4)),
            *(store(right, word, 0, r) for r in range(2)),
            *(store(sums, tirx.const(0, "uint32"), i, 0, r) for i in range(CHAINS) for r in range(4)),
        )
        rounds = loop(layout.PEAK_ROUNDS, lambda _: multiplier.fragments(tile, 1, left, right, sums))
        total: Any = sums[0, 0, 0]
        for i in range(1, CHAINS):
            total = total + sums[i, 0, 0]
        work = sequence(start, rounds, store(result, as_int32(total), block, thread))
        return with_buffers([left, right, sums], work)

    return tirx.PrimFunc([result], launch(layout.PEAK_BLOCKS, layout.PEAK_THREADS, body))


def _checked(folder: Path, architectures: str) -> None:
    """The digits step with the operands and results of every kernel, from the PyTorch reference."""
    source = load_example("digits", CHECKED_BATCH)
    settings = {"target": "cuda", "arch": architectures, "agp": "once"}
    output = layout.artifact(folder, layout.CHECKED)
    compile_example(source, settings, output)
    options = options_of(merge_settings(source.options, settings))
    lowered = lower_model(source, options)
    program = to_relax(lowered.train, lowered.predict)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    table = []
    for number, (_, case) in enumerate(kernel_cases(lowered.train, program, source.example_inputs, options)):
        for kind, tensors in (("operand", case.operands), ("expected", case.expected)):
            for i, tensor in enumerate(tensors):
                arrays[f"{number}_{kind}_{i}"] = np.array(tensor.detach().numpy(), order="C")
        row = {"symbol": case.info.symbol, "op": case.info.op, "layer": case.info.layer}
        table.append({**row, "in_place": case.in_place, "tolerance": case.tolerance, "floor": case.floor})
    np.savez_compressed(output / layout.CASES, **arrays)  # type: ignore[arg-type]
    (output / layout.CASE_TABLE).write_text(json.dumps(table, indent=1))
