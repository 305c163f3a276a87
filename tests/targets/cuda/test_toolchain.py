"""nvcc: the kernels compile for every architecture, use tensor cores, keep to registers; what goes wrong is said."""

import dataclasses
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.targets.cuda import toolchain
from fqt_deploy.targets.cuda.features import cuda_features
from fqt_deploy.targets.cuda.target import cuda_target

CUOBJDUMP = toolchain.find_nvcc().with_name("cuobjdump")


def dump(binary, *options):
    """What cuobjdump says about a fatbin."""
    command = [CUOBJDUMP, *options, binary]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def extracted(library, folder):
    """The fatbin inside a shared library, as a file."""
    content = library.read_bytes()
    start = content.index(toolchain.FATBIN_MAGIC)
    _, _, header, size = struct.unpack_from("<IHHQ", content, start)
    binary = folder / "kernels.fatbin"
    binary.write_bytes(content[start : start + header + size])
    return binary


def architectures_in(binary):
    """Architectures with machine code, and those with PTX."""
    return (
        set(re.findall(r"\.(sm_\w+)\.cubin", dump(binary, "--list-elf"))),
        set(re.findall(r"\.(sm_\w+)\.ptx", dump(binary, "--list-ptx"))),
    )


def spilling(binary):
    """Kernels that use memory of their threads, for arrays or for registers that ran out."""
    usage = re.findall(r"Function (\w+):\s*REG:\d+ STACK:(\d+)", dump(binary, "--dump-resource-usage"))
    assert usage, "cuobjdump lists no kernel"
    return [name for name, stack in usage if int(stack) > 0]


def compiled(source, architectures, folder):
    path = folder / "kernels.fatbin"
    path.write_bytes(toolchain.compile_cuda(source, cuda_features(architectures)))
    return path


@pytest.mark.thorough
def test_the_kernels_of_a_step_compile_and_use_binary_tensor_cores(digits_step, tmp_path):
    binary = compiled(digits_step[2], "sm_80,sm_90a", tmp_path)
    assert architectures_in(binary) == ({"sm_80", "sm_90a"}, {"sm_80"})
    assert spilling(binary) == []
    code = dump(binary, "--dump-sass", "-arch", "sm_90a")
    using = {name for name, body in functions_of(code) if "BMMA" in body}
    products = {"level_conv2d", "bitplane_conv2d_input_grad", "level_weight_grad"}
    assert {re.sub(r"fqt_(\w+)_[0-9a-f]{16}_kernel.*", r"\1", name) for name in using} == products


@pytest.mark.slow
@pytest.mark.parametrize("example", ["resnet18_cifar", "vgg16_cifar", "mlp_mixer", "vgg16_imagenet"])
def test_the_kernels_of_every_example_compile_without_spills(example, tmp_path):
    from fqt_deploy.capture.load_model import load_model
    from fqt_deploy.compiler.compile_model import compile_model
    from fqt_deploy.core.options import CompileOptions

    source = load_model(Path(__file__).parents[3] / "examples" / f"{example}.py")
    result = compile_model(source, CompileOptions(target="cuda"), tmp_path / "step")
    binary = extracted(result.output / "step.so", tmp_path)
    assert architectures_in(binary) == ({"sm_80", "sm_90a"}, {"sm_80"})
    assert spilling(binary) == []


INSTRUCTIONS = {
    # architecture and form -> instruction in the machine code, and how often at least in the three products
    ("sm_90a", None): (r"BMMA\.168256\.AND\.POPC", 3 * 64),
    ("sm_90a", "wgmma"): (r"BGMMA\.64x(64|128)x256\.AND\.POPC", 3 * 4),
    ("sm_75", None): (r"BMMA\.88128\.XOR\.POPC", 3 * 256),
    ("sm_120", None): (r"IMMA\.16832\.U8\.U8", 3 * 16),
}


@pytest.mark.thorough
@pytest.mark.parametrize(("architecture", "form"), INSTRUCTIONS, ids=str)
def test_products_of_real_size_keep_to_registers(emulated_target, tmp_path, architecture, form):
    """The largest tile of each product, as in VGG16 with a batch of 64."""
    import torch
    import tvm

    from fqt_deploy.codegen.build import lower_relax
    from tests.targets.op_kernel import op_function

    cases = {
        "binary_conv2d": ([(64, 32, 32, 4), (8, 36, 16)], (128, 128, [3, 3], [1, 1], [1, 1])),
        "bitplane_conv2d_input_grad": (
            [(64, 16, 16, 4, 4), (8, 36, 16)], (128, 128, [16, 16], [3, 3], [1, 1], [1, 1])
        ),
        "bitplane_weight_grad": ([(2048, 4, 64), (73, 2048, 16)], (128, [3, 3])),
    }  # fmt: skip
    module, sources, target = {}, [], emulated_target(architecture)
    if form is not None:
        target = dataclasses.replace(target, features=target.features.preferring(form))
    for op, (shapes, arguments) in cases.items():
        operands = (torch.empty(shape, dtype=torch.int32, device="meta") for shape in shapes)
        module[op] = target.schedule(op_function(op, (*operands, *arguments))).with_attr("global_symbol", op)
    compiler = dataclasses.replace(target, compile_source=lambda source, _: sources.append(source) or b"\0")
    compiler.compile(tvm.IRModule(module), lower_relax)
    binary = tmp_path / "kernels.fatbin"
    binary.write_bytes(toolchain.compile_cuda(sources[0], target.features))
    virtual = architecture.rstrip("a")
    assert architectures_in(binary) == ({architecture}, set() if form == "wgmma" else {virtual})
    assert spilling(binary) == []
    pattern, least = INSTRUCTIONS[architecture, form]
    assert len(re.findall(pattern, dump(binary, "--dump-sass"))) >= least
    if form == "wgmma":  # copies are published to the asynchronous proxy before the barrier in front of a product
        order = (
            r"fence_proxy_proxy_async_shared__cta\(\);\s*tvm_builtin_cuda_cta_sync\(\);[^}]*?\w+wgmma_fence_fence_sync"
        )
        assert len(re.findall(order, sources[0])) == 3


@pytest.mark.quick
@pytest.mark.parametrize("architecture", [name for name, form in INSTRUCTIONS if form is None])
def test_the_ceiling_of_the_benchmark_is_tensor_core_instructions(architecture, monkeypatch, tmp_path):
    from tools.gpu_bench import build, layout

    monkeypatch.setattr(layout, "SHAPES", ())
    (form,) = cuda_features(architecture).bit_forms
    build._products(tmp_path, architecture, form)
    binary = extracted(layout.products_library(tmp_path, form), tmp_path)
    assert spilling(binary) == []
    pattern, _ = INSTRUCTIONS[architecture, None]
    assert len(re.findall(pattern, dump(binary, "--dump-sass"))) >= layout.PEAK_CHAINS


def test_fp32_products_of_real_size_read_vectors_and_keep_to_registers(emulated_target, tmp_path):
    """A convolution of VGG16, by multiply-add and in TF32."""
    import tvm
    from tvm import te

    from fqt_deploy.codegen.build import lower_relax
    from fqt_deploy.ops.op import FQT_OPS

    module, sources, target = {}, [], emulated_target()
    x, w = te.placeholder((64, 32, 32, 128), name="x"), te.placeholder((128, 128, 3, 3), name="w")
    product = te.create_prim_func([x, w, FQT_OPS["conv2d"](x, w, [1, 1], [1, 1]).compute()])
    product = product.with_attrs({"fqt.op": "conv2d", "fqt.outputs": 1, "tirx.noalias": True})
    for name, chosen in (("exact", target), ("tf32", target.with_tf32())):
        module[name] = chosen.schedule(product).with_attr("global_symbol", name)
    compiler = dataclasses.replace(target, compile_source=lambda source, _: sources.append(source) or b"\0")
    compiler.compile(tvm.IRModule(module), lower_relax)
    binary = compiled(sources[0], "sm_80,sm_90a", tmp_path)
    assert spilling(binary) == []
    for architecture in ("sm_80", "sm_90a"):
        code = dump(binary, "--dump-sass", "-arch", architecture)
        exact, tf32 = (next(body for found, body in functions_of(code) if found.startswith(name)) for name in module)
        for instruction, least in (
            ("FFMA", 8 * 64),
            (r"LDS\.128", 8 * 4),
            (r"LDG\.E\.128", 2),
            (r"ST[GS]\.E?\.?128", 1),
        ):
            assert len(re.findall(instruction, exact)) >= least, (architecture, instruction)
        assert "HMMA" not in exact
        assert "FFMA" not in tf32
        assert tf32.count("HMMA.1688.F32.TF32") >= 2 * 16


def functions_of(code):
    """Name and instructions of every function in a listing of machine code."""
    return re.findall(r"Function : (\w+)(.*?)(?=Function :|\Z)", code, re.DOTALL)


def test_features_follow_the_oldest_architecture():
    assert cuda_features(None).architectures == ("sm_80", "sm_90a")
    assert cuda_features("sm_90a, sm_80").architectures == ("sm_80", "sm_90a")
    assert cuda_features("sm_80,sm_75").bit_forms == ("xor",)
    assert cuda_features("sm_90a,sm_100").bit_forms == ("and",)
    assert cuda_features("sm_120,sm_100").bit_forms == ("int8",)
    assert (cuda_features("sm_90a").virtual, cuda_features("sm_90a").forward_compatible) == ("compute_90", True)
    assert cuda_features("sm_120,sm_75").virtual == "compute_75"
    assert cuda_features("sm_90a").preferring("wgmma").bit_forms == ("wgmma", "and")
    assert cuda_features("sm_90a").preferring("wgmma").virtual == "compute_90a"
    assert not cuda_features("sm_90a").preferring("wgmma").forward_compatible
    assert cuda_features("sm_90a:wgmma") == cuda_features("sm_90a").preferring("wgmma")
    assert cuda_target("sm_90a:wgmma").variant() == {"ptx": "none"}
    for wrong in ("sm_80,sm_90a:wgmma", "sm_90a:int4"):
        with pytest.raises(FqtError, match="has no 1-bit products by") as error:
            cuda_features(wrong)
        assert "sm_90a:wgmma" in error.value.hint
    for wrong in ("sm_42", "", "gfx90a"):
        with pytest.raises(FqtError) as error:
            cuda_features(wrong)
        assert error.value.code == "FQT402"


def test_a_missing_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setattr(toolchain, "_cuda_packages", list)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FqtError, match="not installed") as error:
        toolchain.compile_cuda("", cuda_features(None))
    assert error.value.code == "FQT404"
    assert "fqt-deploy[cuda]" in error.value.hint


def test_source_that_does_not_compile_is_an_error_with_its_line():
    with pytest.raises(FqtError, match="identifier") as error:
        toolchain.compile_cuda('extern "C" __global__ void k() { nonsense; }', cuda_features("sm_80"))
    assert error.value.code == "FQT301"


MODEL = """
import torch
from torch import nn

def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

def example_inputs():
    return torch.randn(16, 64), torch.randint(0, 10, (16,))
"""


def compile_in_a_process(path, *options):
    command = [sys.executable, "-m", "fqt_deploy.cli", str(path), *options]
    program = f"import sys; sys.argv = {command[2:]!r}; from fqt_deploy.cli import main; main()"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=path.parent)


FEW_KERNELS = ("--target", "cuda", "--arch", "sm_80", "--recipe", "none", "--optimizer", "sgd")


@pytest.mark.thorough
def test_the_command_compiles_without_gpu_and_driver(model_file, tmp_path):
    done = compile_in_a_process(model_file(MODEL), *FEW_KERNELS, "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    binary = extracted(tmp_path / "out" / "step.so", tmp_path)
    assert architectures_in(binary) == ({"sm_80"}, {"sm_80"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--target", "cuda", "--arch", "sm_1"), "unknown architecture 'sm_1'"),
        (("--target", "cuda", "--mcpu", "znver4"), "target cuda has no mcpu"),
        (("--target", "cpu", "--arch", "sm_80"), "target cpu has no arch"),
        (("--target", "cpu", "--tf32"), "target cpu has no tf32"),
        (("--target", "cuda", "--arch", "sm_75,sm_80", "--tf32"), "sm_75 has no TF32"),
    ],
)
def test_wrong_options_are_one_clear_error(model_file, tmp_path, options, words):
    from click.testing import CliRunner

    from fqt_deploy.cli import main

    done = CliRunner().invoke(main, [str(model_file(MODEL)), *options, "-o", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert words in done.output
    assert not (tmp_path / "out").exists()
