"""The tile of bits against NumPy: any shape, planes, layout and split gives the exact counts."""

import math

import numpy as np
import pytest
import tvm
from tvm import tirx

from fqt_deploy.codegen.build import lower_relax
from fqt_deploy.targets.cuda.bit_operand import Operand
from fqt_deploy.targets.cuda.bit_tile import bit_product, choose_tile, parts_of
from fqt_deploy.targets.cuda.choose_form import FORMS
from fqt_deploy.targets.cuda.kernel_builder import store
from fqt_deploy.targets.cuda.panel_columns import panel_columns, words_at_once

CASES = [
    # rows, planes, columns, words, word-major, in parts
    (200, 1, 72, 18, False, False),
    (33, 4, 130, 7, False, False),
    (64, 2, 64, 64, False, False),
    (20, 8, 40, 33, False, False),
    (48, 4, 300, 200, True, True),
    (7, 1, 16, 1, True, False),
]


def build(form, rows, planes, columns, words, word_major, split):
    panels = -(-columns // 16)
    shape = (words, planes, rows) if word_major else (rows, planes, words)
    a = tirx.decl_buffer(shape, "int32", "a")
    b = tirx.decl_buffer((panels, words, 16), "int32", "b")

    def source(row, plane, word):
        return tirx.all(row < rows, word < words), a, [word, plane, row] if word_major else [row, plane, word]

    left = Operand(rows, planes, words_at_once(rows if word_major else words), word_major, source)
    right = panel_columns(b, columns)
    parts = parts_of(form, left, right, words) if split else 1
    result = tirx.decl_buffer((parts, rows, columns), "int32", "result")
    ones = tirx.decl_buffer((rows,), "int32", "ones")

    def write(row, column, count, own, part):
        statement = store(result, count, part, row, column)
        return statement if own is None else tirx.SeqStmt([statement, store(ones, own, row)])

    body = bit_product(form, left, right, words, write, count_rows=not word_major, parts=parts)
    return tirx.PrimFunc([a, b, result, ones], body), parts


@pytest.fixture(scope="module")
def library(emulated_target, request, cases):
    """The cases that a test will run, if the form has their planes, and into how many parts each is split."""
    functions, parts = {}, {}
    for name, i in ((case["form"], case["number"]) for case in cases(request.module, "library")):
        if CASES[i][1] in FORMS[name].tiles:
            function, parts[name, i] = build(FORMS[name], *CASES[i])
            functions[f"{name}{i}"] = function.with_attr("global_symbol", f"{name}{i}")
    return emulated_target().compile(tvm.IRModule(functions), lower_relax), parts


@pytest.mark.quick(2, per="form")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", range(len(CASES)))
def test_counts_are_exact(library, number, form):
    module, parts = library
    if CASES[number][1] not in FORMS[form].tiles:
        pytest.skip(f"{form} has no tiles for {CASES[number][1]} planes")
    rows, planes, columns, words, word_major, split = CASES[number]
    generator = np.random.default_rng(number)
    bits = generator.integers(-(2**31), 2**31, (rows, planes, words), dtype=np.int64).astype(np.int32)
    other = generator.integers(-(2**31), 2**31, (-(-columns // 16) * 16, words), dtype=np.int64).astype(np.int32)
    weights = 1 << np.arange(planes)
    shared = np.bitwise_count((bits[:, None] & other[None, :, None]).view(np.uint32)).sum(-1).astype(np.int64) @ weights
    a = bits.transpose(2, 1, 0) if word_major else bits
    b = other.reshape(-1, 16, words).transpose(0, 2, 1)
    device = tvm.cuda(0)
    operands = [tvm.runtime.tensor(np.ascontiguousarray(v), device) for v in (a, b)]
    result = tvm.runtime.tensor(np.zeros((parts[form, number], rows, columns), np.int32), device)
    ones = tvm.runtime.tensor(np.zeros(rows, np.int32), device)
    module[f"{form}{number}"](*operands, result, ones)
    np.testing.assert_array_equal(result.numpy().sum(0), shared[:, :columns])
    if not word_major:
        np.testing.assert_array_equal(ones.numpy(), np.bitwise_count(bits.view(np.uint32)).sum(-1) @ weights)
    assert parts[form, number] > 1 or not split


def test_every_tile_fits_the_shared_memory_of_a_block():
    for form in FORMS.values():
        for planes, tiles in form.tiles.items():
            for tile in tiles:
                sides = [
                    2 * math.prod(form.layout(Operand(1, 1, 4, word_major, None), height).shape) + height
                    for word_major, height in ((False, tile.height), (True, tile.height), (True, tile.width))
                ]
                assert 4 * (max(sides[:2]) + sides[2]) <= 48 * 1024
                assert tile.fragments_down % planes == 0


def test_small_results_get_small_tiles():
    def operand(rows, planes=1):
        return Operand(rows, planes, 4, True, lambda *_: None)

    for form in FORMS.values():
        large = choose_tile(form, operand(2**16), operand(512), splittable=False)
        small = choose_tile(form, operand(512), operand(64), splittable=False)
        assert large.height * large.width > small.height * small.width


@pytest.mark.quick
@pytest.mark.parametrize(
    ("architecture", "form"), [("sm_75", "xor"), ("sm_90a", "and"), ("sm_90a", "wgmma"), ("sm_120", "int8")]
)
def test_the_products_of_the_benchmark_are_exact(emulated_entry, tmp_path, monkeypatch, architecture, form):
    import tvm_ffi

    from fqt_deploy.targets import registry
    from tools.gpu_bench import build, layout

    shape = layout.Product("test", 80, 48, 96)
    monkeypatch.setitem(registry.TARGETS, "cuda", emulated_entry)
    monkeypatch.setattr(layout, "SHAPES", (shape,))
    build._products(tmp_path, architecture, form)
    module = tvm_ffi.load_module(str(layout.products_library(tmp_path, form)))
    generator = np.random.default_rng(0)
    signs = [generator.choice([-1, 1], (rows, shape.k)) for rows in (shape.m, shape.n)]
    x, w = (np.packbits(s > 0, axis=1, bitorder="little").view(np.int32) for s in signs)
    panels = w.reshape(-1, 16, shape.k // 32).transpose(0, 2, 1)
    device = tvm.cuda(0)
    operands = [tvm.runtime.tensor(np.ascontiguousarray(a), device) for a in (x[None, None], panels)]
    result = tvm.runtime.tensor(np.zeros((1, 1, shape.m, shape.n), np.int16), device)
    module[shape.symbol](*operands, result)
    np.testing.assert_array_equal(result.numpy()[0, 0], signs[0] @ signs[1].T)
