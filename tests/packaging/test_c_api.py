"""The C interface: what a C program computes is what Python computes, and what it refuses is what Python refuses."""

import hashlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fqt_deploy
from fqt_deploy.capture.load_model import model_source
from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.core.diagnostics import CODES, FqtError
from fqt_deploy.core.manifest import SCHEMA_VERSION
from fqt_deploy.packaging.build_c_api import SOURCES
from fqt_deploy.runtime.artifact import read_sums
from fqt_deploy.settings import options_of
from tests.packaging.conftest import compile_example, write_rows
from tests.text_model import TextClassifier, texts

LARGEST = 12e6
"""Bytes of everything that is shipped besides the artifact."""


@pytest.fixture(scope="module")
def program(c_api, tmp_path_factory):
    return compile_example("gcc", c_api, tmp_path_factory.mktemp("example") / "train")


@pytest.fixture
def batches(digits, tmp_path):
    """80 samples as batches of 8; ``data.raw`` in ``tmp_path`` holds the same."""
    images, labels = (t[:80].numpy() for t in digits)
    write_rows(tmp_path / "data.raw", images, labels)
    return [(images[i : i + 8], labels[i : i + 8]) for i in range(0, 80, 8)]


def losses_of(output):
    return [np.float32(text) for text in re.findall(r"^step \d+ loss (\S+)$", output, re.MULTILINE)]


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


def test_what_is_shipped_is_small_and_needs_only_tvm(c_api):
    assert sum(path.stat().st_size for path in c_api.rglob("*") if path.is_file()) < LARGEST
    dynamic = run("readelf", "--dynamic", "--wide", c_api / "lib" / "libfqt_runtime.so")
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    system = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6"}
    assert {name for name in needed - system if not name.startswith("ld-linux")} == {
        "libtvm_runtime.so", "libtvm_ffi.so"
    }  # fmt: skip
    licenses = {path.name for path in (c_api / "licenses").iterdir()}
    assert {"apache-tvm-LICENSE", "apache-tvm-ffi-LICENSE", "libbacktrace-LICENSE"} <= licenses


def test_a_c_program_trains_with_the_same_bits(program, digits_artifact, batches, tmp_path):
    output = run(program, digits_artifact, tmp_path / "data.raw", 3)
    session = fqt_deploy.load(digits_artifact)
    expected = [session.step(*batch) for _ in range(3) for batch in batches]
    assert losses_of(output) == expected
    right = [(session.predict(x).argmax(-1) == y).sum() for x, y in batches]
    assert output.splitlines()[-1] == f"accuracy {100 * sum(right) / 80:.2f} %"


@pytest.mark.thorough
def test_a_step_for_several_processes_trains_alone(program, digits_source, digits_artifact, batches, tmp_path):
    compile_model(
        digits_source, options_of({"distributed": "fp32", "batch_norm": "synchronized"}), tmp_path / "several.fqt"
    )
    output = run(program, tmp_path / "several.fqt", tmp_path / "data.raw", 1)
    several, alone = (fqt_deploy.load(folder) for folder in (tmp_path / "several.fqt", digits_artifact))
    assert losses_of(output) == [several.step(*batch) for batch in batches]
    # updates of one are computed from a gradient in a register, of the other from a stored one: last digits differ
    assert losses_of(output) == pytest.approx([alone.step(*batch) for batch in batches], rel=1e-3)


def test_checkpoints_go_back_and_forth(program, digits_artifact, batches, tmp_path):
    checkpoint = tmp_path / "here.safetensors"
    data = tmp_path / "data.raw"
    session, straight = fqt_deploy.load(digits_artifact), fqt_deploy.load(digits_artifact)
    session.seed, session.lr = 11, 0.1 + 0.2  # not a short number
    straight.seed, straight.lr = session.seed, session.lr
    session.save_checkpoint(checkpoint, {"note": "from Python"})
    assert losses_of(run(program, digits_artifact, data, 1, checkpoint)) == [straight.step(*b) for b in batches]
    session.load_checkpoint(checkpoint)
    assert (session.seed, session.lr, session.step_count) == (11, 0.1 + 0.2, 10)
    assert [session.step(*b) for b in batches] == [straight.step(*b) for b in batches]
    session.save_checkpoint(checkpoint)
    assert losses_of(run(program, digits_artifact, data, 1, checkpoint)) == [straight.step(*b) for b in batches]
    session.load_checkpoint(checkpoint)
    for name, array in straight.state_dict().items():
        assert np.array_equal(array, session.state_dict()[name]), name


@pytest.mark.thorough
def test_moments_in_8_bits_train_and_resume_with_the_same_bits(program, digits_source, batches, tmp_path):
    folder, checkpoint = tmp_path / "coded.fqt", tmp_path / "here.safetensors"
    compile_model(digits_source, options_of({"moment_bits": 8}), folder)
    first, straight = fqt_deploy.load(folder), fqt_deploy.load(folder)
    assert {str(tensor.dtype) for tensor in first.manifest.state if "adam" in tensor.name} >= {"uint8", "float32"}
    first.save_checkpoint(checkpoint)
    for _ in range(2):
        assert losses_of(run(program, folder, tmp_path / "data.raw", 1, checkpoint)) == [
            straight.step(*batch) for batch in batches
        ]
    first.load_checkpoint(checkpoint)
    for name, array in straight.state_dict().items():
        assert np.array_equal(array, first.state_dict()[name]), name


DRIVER = '''
"""Calls functions of libfqt_runtime and prints, for each, its result and the last error."""
import ctypes, json, sys
lib = ctypes.CDLL(sys.argv[1])
lib.fqt_last_error.restype = ctypes.c_char_p
lib.fqt_set_lr.argtypes = [ctypes.c_void_p, ctypes.c_double]
lib.fqt_set_group_lr.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_double]
lib.fqt_lr.restype = ctypes.c_double
session = ctypes.c_void_p()

def say(code):
    print(json.dumps([code, lib.fqt_last_error().decode()]))

def call(name, *arguments):
    say(getattr(lib, name)(session, *arguments))

say(lib.fqt_load(sys.argv[2].encode(), ctypes.byref(session)))
exec(sys.argv[3])
lib.fqt_free(session)
'''


def drive(c_api, artifact, actions=""):
    output = run(sys.executable, "-c", DRIVER, c_api / "lib" / "libfqt_runtime.so", artifact, actions)
    return [json.loads(line) for line in output.splitlines()]


def damage(folder, kind):
    if kind == "processor":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["target"]["requires"] += " avx4096"
        (folder / "manifest.json").write_text(json.dumps(manifest))
        sums = re.sub(r".*  manifest.json", "", (folder / "SHA256SUMS").read_text()).strip()
        digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
        (folder / "SHA256SUMS").write_text(f"{digest}  manifest.json\n{sums}\n")
    elif kind == "version":
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"schema_version": SCHEMA_VERSION + 1}))
    elif kind == "sums":
        (folder / "SHA256SUMS").write_text("step.so\n")
    elif kind == "json":
        (folder / "manifest.json").write_text("{")
    elif kind == "gone":
        shutil.rmtree(folder)
    else:
        path = folder / kind
        path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "kind",
    [
        "manifest.json",
        "step.so",
        "state.safetensors",
        "lib/libtvm_runtime.so",
        "sums",
        "json",
        "version",
        "gone",
        "processor",
    ],
)
def test_it_refuses_the_artifacts_that_python_refuses(c_api, digits_artifact, tmp_path, kind):
    folder = tmp_path / "damaged.fqt"
    shutil.copytree(digits_artifact, folder)
    damage(folder, kind)
    with pytest.raises(FqtError) as caught:
        fqt_deploy.load(folder)
    ((code, message),) = drive(c_api, folder)
    assert f"FQT{code}" == caught.value.code
    assert message.startswith(f"FQT{code}: ")


def test_it_refuses_steps_for_gpus(c_api, digits_artifact, tmp_path):
    folder = tmp_path / "gpu.fqt"
    shutil.copytree(digits_artifact, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["target"]["name"] = "cuda"
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    sums = [line for line in (folder / "SHA256SUMS").read_text().splitlines() if not line.endswith("  manifest.json")]
    (folder / "SHA256SUMS").write_text("\n".join([f"{hashlib.sha256(text).hexdigest()}  manifest.json", *sums, ""]))
    ((code, message),) = drive(c_api, folder)
    assert code == 402
    assert "compiled for a GPU" in message


def test_it_refuses_bad_arguments_and_goes_on(c_api, digits_artifact, tmp_path):
    (tmp_path / "short.safetensors").write_bytes(b"short")
    actions = f"""
x, y, loss = (ctypes.c_float * 512)(), (ctypes.c_int64 * 8)(), ctypes.c_float()
step = lambda: call("fqt_step", x, 2048, y, 64, ctypes.byref(loss))
step()
call("fqt_step", x, 2047, y, 64, ctypes.byref(loss))
x[7] = float("nan"); step(); x[7] = 0
y[3] = 10; step(); y[3] = 0
call("fqt_set_lr", -1.0)
call("fqt_set_group_lr", 1, 0.1)
call("fqt_predict", x, 256, loss, 4)
call("fqt_load_checkpoint", {str(tmp_path / "short.safetensors")!r}.encode())
call("fqt_load_checkpoint", {str(digits_artifact / "state.safetensors")!r}.encode())
call("fqt_save_checkpoint", {str(tmp_path / "no" / "folder")!r}.encode())
step()
print(json.dumps([lib.fqt_step_count(session), ""]))
"""
    results = drive(c_api, digits_artifact, actions)
    codes = [code for code, _ in results]
    assert codes == [0, 0, 505, 506, 507, 202, 202, 505, 502, 504, 508, 0, 2]
    assert "element 7" in results[3][1]
    assert "y[3] is 10; labels go from 0 to 9" in results[4][1]


def test_the_number_of_threads_is_checked(c_api, digits_artifact, monkeypatch):
    monkeypatch.setenv("FQT_NUM_THREADS", "0")
    assert drive(c_api, digits_artifact)[0][0] == 202


def test_state_can_be_read(c_api, digits_artifact):
    actions = """
class Tensor(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("dtype", ctypes.c_char_p), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("ndim", ctypes.c_size_t), ("bytes", ctypes.c_size_t)]
lib.fqt_state.restype = ctypes.POINTER(Tensor)
lib.fqt_state_data.restype = ctypes.c_void_p
index = 0
while lib.fqt_state(session, index):
    t = lib.fqt_state(session, index).contents
    data = ctypes.string_at(lib.fqt_state_data(session, index), t.bytes)
    print(json.dumps([t.name.decode(), t.dtype.decode(), t.shape[: t.ndim], data.hex()]))
    index += 1
"""
    read = drive(c_api, digits_artifact, actions)[1:]
    manifest, state, _ = fqt_deploy.runtime.artifact.read_artifact(digits_artifact)
    assert [row[:3] for row in read] == [[spec.name, spec.dtype, [*spec.shape]] for spec in manifest.state]
    assert all(bytes.fromhex(row[3]) == state[row[0]].tobytes() for row in read)


def test_sources_agree_with_python_on_codes_and_version():
    codes = re.findall(r"= (\d{3}),", (SOURCES / "src" / "error.h").read_text())
    assert {f"FQT{code}" for code in codes} <= set(CODES)
    (version,) = re.findall(r"kSchemaVersion = (\d+);", (SOURCES / "src" / "artifact.cc").read_text())
    assert int(version) == SCHEMA_VERSION


def test_digests_are_those_of_sha256sum(c_api, digits_artifact, tmp_path):
    """Contents of every length around the block size, as further members of an artifact."""
    folder = tmp_path / "lengths.fqt"
    shutil.copytree(digits_artifact, folder)
    with (folder / "SHA256SUMS").open("a") as sums:
        for length in (0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000):
            content = bytes(i % 251 for i in range(length))
            (folder / f"length{length}").write_bytes(content)
            sums.write(f"{hashlib.sha256(content).hexdigest()}  length{length}\n")
    assert drive(c_api, folder) == [[0, ""]]
    (folder / "length56").write_bytes(bytes(56))
    assert drive(c_api, folder)[0][0] == 502
    assert "length56" in read_sums(folder)


class Table(nn.Module):
    """Columns of integers, looked up in tables of their own."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, 4) for size in (2, 30))
        self.head = nn.Linear(9, 3)

    def forward(self, x):
        looked_up = [table(x[:, i]) for i, table in enumerate(self.tables)]
        return self.head(torch.cat([*looked_up, x[:, 2:].float()], 1))


def test_columns_have_ranges_of_their_own(c_api, tmp_path):
    batch = torch.stack([torch.arange(6) % 2, torch.arange(6) + 24, -torch.arange(6)], 1), torch.arange(6) % 3
    compile_model(
        model_source(Table(), F.cross_entropy, batch),
        options_of({"recipe": "none", "exclude": ("*",)}),
        tmp_path / "t.fqt",
    )
    actions = """
x = (ctypes.c_int64 * 18)(*[value for i in range(6) for value in (i % 2, 24 + i, -i)])
y, loss = (ctypes.c_int64 * 6)(0, 1, 2, 0, 1, 2), ctypes.c_float()
def step():
    call("fqt_step", x, ctypes.c_size_t(144), y, ctypes.c_size_t(48), ctypes.byref(loss))
step()
print(json.dumps([loss.value, ""]))
x[3] = 2; step(); x[3] = 1
x[4] = 30; step(); x[4] = 25
step()
"""
    results = drive(c_api, tmp_path / "t.fqt", actions)
    session = fqt_deploy.load(tmp_path / "t.fqt")
    assert np.float32(results[2][0]) == session.step(*(tensor.numpy() for tensor in batch))
    assert [code for code, _ in (*results[:2], *results[3:])] == [0, 0, 507, 507, 0]
    assert "x[3] is 2; indices go from 0 to 1" in results[3][1]
    assert "x[4] is 30; indices go from 0 to 29" in results[4][1]


def test_arrays_by_name_train_and_predict_with_the_same_bits(c_api, tmp_path):
    """The text classifier: two inputs, labels, a loss inside; predictions of fewer samples than a batch."""
    torch.manual_seed(1)
    source = model_source(TextClassifier(), None, [texts(8), texts(3), texts(4, 6)])
    # as tests/compiler/test_buckets.py compiles it
    options = options_of({"recipe": "none", "exclude": ("*",), "optimizer": "sgd", "lr": 0.1})
    compile_model(source, options, tmp_path / "text.fqt")
    batch = {name: tensor.numpy() for name, tensor in texts(8).items()}
    short = {name: tensor.numpy() for name, tensor in texts(4, 6).items()}
    np.savez(tmp_path / "batch.npz", **batch)
    np.savez(tmp_path / "short.npz", **short)
    actions = f"""
import numpy as np
class Array(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("ndim", ctypes.c_size_t)]
batch, loss, logits = dict(np.load({str(tmp_path / "batch.npz")!r})), ctypes.c_float(), np.zeros((5, 3), np.float32)
def arrays(given):
    made = [(k.encode(), v.ctypes.data, (ctypes.c_int64 * v.ndim)(*v.shape), v.ndim) for k, v in given.items()]
    extents = ctypes.POINTER(ctypes.c_int64)
    return (Array * len(made))(*(Array(k, p, ctypes.cast(s, extents), n) for k, p, s, n in made))
def train(given):
    call("fqt_train", arrays(given), ctypes.c_size_t(len(given)), ctypes.byref(loss))
for _ in range(3):
    train(batch)
    print(json.dumps([loss.value, ""]))
train(dict(np.load({str(tmp_path / "short.npz")!r})))
print(json.dumps([loss.value, ""]))
few = {{name: np.ascontiguousarray(array[:5]) for name, array in batch.items()}}
place = logits.ctypes.data_as(ctypes.c_void_p)
call("fqt_predict_arrays", arrays(few), ctypes.c_size_t(3), place, ctypes.c_size_t(60))
print(json.dumps([logits.tolist(), ""]))
train(few)
train({{k: v for k, v in batch.items() if k != "attention_mask"}})
train({{**batch, "token_type_ids": batch["input_ids"]}})
train({{**batch, "input_ids": batch["input_ids"] + 40}})
call("fqt_step", place, ctypes.c_size_t(768), None, ctypes.c_size_t(0), None)
"""
    results = drive(c_api, tmp_path / "text.fqt", actions)
    session = fqt_deploy.load(tmp_path / "text.fqt")
    assert [np.float32(results[i][0]) for i in (2, 4, 6, 8)] == [session.step(b) for b in (batch, batch, batch, short)]
    few = {name: array[:5] for name, array in batch.items()}
    assert np.array_equal(np.array(results[10][0], np.float32), session.predict(few))
    assert [code for code, _ in results[11:]] == [505, 505, 505, 507, 505]
    for (_, said), expected in zip(
        results[11:],
        (
            "input_ids int64[5, 12], attention_mask int64[5, 12], labels int64[5]; expected input_ids int64[8, 12], "
            "attention_mask int64[8, 12], labels int64[8]; input_ids int64[3, 12]", "no value for attention_mask",
            "no input token_type_ids; the inputs are input_ids, attention_mask, labels", "input_ids[0] is",
            "the step takes input_ids, attention_mask, labels: call fqt_train",
        ),
        strict=True,
    ):  # fmt: skip
        assert expected in said


AVERAGES = """
import ctypes, sys
import numpy as np
library = ctypes.CDLL(sys.argv[1])
library.fqt_last_error.restype = ctypes.c_char_p
given = np.load(sys.argv[3])
x, y = np.ascontiguousarray(given["x"]), np.ascontiguousarray(given["y"])
session, loss, logits = ctypes.c_void_p(), ctypes.c_float(), np.empty((8, 10), "float32")
at = lambda a: (a.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(a.nbytes))
assert library.fqt_load(sys.argv[2].encode(), ctypes.byref(session)) == 0, library.fqt_last_error()
for averaged in (0, 1, 0):
    if sys.argv[4] == "none":
        code = library.fqt_use_averages(session, 1)
        print(code, library.fqt_last_error().decode())
        break
    assert library.fqt_use_averages(session, averaged) == 0, library.fqt_last_error()
    for _ in range(2):
        assert library.fqt_step(session, *at(x), *at(y), ctypes.byref(loss)) == 0, library.fqt_last_error()
    assert library.fqt_predict(session, *at(x), *at(logits)) == 0, library.fqt_last_error()
    print(loss.value.hex(), logits.tobytes().hex())
"""


@pytest.mark.thorough
def test_a_step_that_keeps_averages(c_api, loop_artifact, digits_artifact, digits, tmp_path):
    x, y = (tensor[:8].numpy() for tensor in digits)
    np.savez(tmp_path / "batch.npz", x=x, y=y)
    script = [sys.executable, "-c", AVERAGES, c_api / "lib" / "libfqt_runtime.so"]
    found = run(*script, loop_artifact, tmp_path / "batch.npz", "all").split()
    session = fqt_deploy.load(loop_artifact)
    for number, averaged in enumerate((False, True, False)):
        session.averaged = averaged
        losses = [session.step(x, y) for _ in range(2)]
        assert found[2 * number] == losses[-1].hex()
        assert found[2 * number + 1] == session.predict(x).tobytes().hex()
    refused = run(*script, digits_artifact, tmp_path / "batch.npz", "none")
    assert refused.startswith("513 FQT513: the step keeps no averages")
