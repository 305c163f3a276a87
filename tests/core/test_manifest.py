"""The manifest: written and read back the same, and every misfit refused with its place."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import (
    OLDEST_SCHEMA,
    SCHEMA_VERSION,
    Bucket,
    IndexRange,
    InputSpec,
    KernelInfo,
    LayerDecision,
    Manifest,
    OptimizerInfo,
    StateSpec,
    TensorSpec,
    function_name,
)

MANIFEST = Manifest(
    name="net",
    target={"name": "cpu", "arch": "x86_64", "mcpu": "znver4", "requires": "avx2"},
    versions={"torch": "2.13.0"},
    inputs=(
        InputSpec("x", (8, 3, 4, 4), "float32", "input"),
        InputSpec("y", (8,), "int64", "target", IndexRange(0, 10, -1)),
    ),
    logits=TensorSpec("logits", (8, 10), "float32"),
    classes=None,
    state=(StateSpec("param/w", (10, 48), "float32", "param"), StateSpec("step", (), "int64", "counter")),
    predict_state=("param/w",),
    module_names={"w": "param/w"},
    layers=(LayerDecision("head", "linear", "fp32", "the last linear layer stays in fp32", "net.py:3"),),
    kernels=(KernelInfo("k0", "linear", "head", "forward", flops=7680), KernelInfo("k1", "add", "", "optimizer")),
    options={"recipe": "none", "include": []},
    optimizer=OptimizerInfo("adam", {"betas": [0.9, 0.999]}, ({"pattern": "*", "lr": 1e-3},)),
    seed=0,
    fingerprint="f" * 64,
)


def changed(*path, value):
    """The manifest's JSON with the value at ``path`` replaced, or removed if it is ``...``."""
    data = json.loads(MANIFEST.to_json())
    *outer, last = path
    holder = data
    for key in outer:
        holder = holder[key]
    if value is ...:
        del holder[last]
    else:
        holder[last] = value
    return json.dumps(data)


def test_it_reads_what_it_wrote():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST
    assert Manifest.from_json(MANIFEST.to_json().encode()) == MANIFEST
    assert MANIFEST.batch == 8
    assert [spec.size for spec in (*MANIFEST.inputs, *MANIFEST.state)] == [384, 8, 480, 1]


@pytest.mark.parametrize("text", ["", "{", b"\xff", "[]", "3", "{}", '{"schema_version": "2"}'])
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(FqtError, match="FQT502"):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("seed",), "0", "manifest.seed of manifest.json must be int, not str"),
        (("seed",), True, "manifest.seed of manifest.json must be int, not bool"),
        (("classes",), "10", "manifest.classes of manifest.json must be int, not str"),
        (("inputs",), {}, "manifest.inputs of manifest.json must be a list, not dict"),
        (("inputs", 1), 3, "manifest.inputs[1] of manifest.json must be an object, not int"),
        (("inputs", 0, "shape", 2), 4.0, "manifest.inputs[0].shape[2] of manifest.json must be int, not float"),
        (("inputs", 0, "shape"), ..., "manifest.inputs[0] of manifest.json has missing or unknown fields: shape"),
        (("kernels", 1, "speed"), 3, "manifest.kernels[1] of manifest.json has missing or unknown fields: speed"),
        (("kernels", 1, "op"), None, "manifest.kernels[1].op of manifest.json must be str, not NoneType"),
        (("module_names",), [], "manifest.module_names of manifest.json must be an object, not list"),
        (("module_names", "w"), 1, "manifest.module_names.w of manifest.json must be str, not int"),
        (("optimizer", "groups", 0), "*", "manifest.optimizer.groups[0] of manifest.json must be an object, not str"),
        (("fingerprint",), ..., "manifest of manifest.json has missing or unknown fields: fingerprint"),
    ],
)
def test_a_misfit_is_named(path, value, said):
    with pytest.raises(FqtError) as caught:
        Manifest.from_json(changed(*path, value=value))
    assert (caught.value.code, caught.value.message) == ("FQT502", said)


def test_what_may_be_absent():
    assert Manifest.from_json(changed("classes", value=10)).classes == 10
    assert Manifest.from_json(changed("layers", 0, "source", value=None)).layers[0].source is None


@pytest.mark.parametrize(("version", "hint"), [(SCHEMA_VERSION + 1, "newer"), (OLDEST_SCHEMA - 1, "compile")])
def test_another_version_is_told_before_anything_else(version, hint):
    with pytest.raises(FqtError, match="FQT503") as caught:
        Manifest.from_json(json.dumps({"schema_version": version, "unheard_of": 1}))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("inputs", 1, "name"), "x", "two inputs have one name: x, x"),
        (("inputs", 0, "name"), "step", "an input is called 'step'"),
        (("inputs", 1, "role"), "other", "the inputs are not inputs of the model followed by targets"),
        (("inputs", 0, "role"), "target", "the inputs are not inputs of the model followed by targets"),
        (("inputs", 1, "shape"), [7], "x [8, 3, 4, 4] and y [7] are not of one batch"),
        (("inputs", 1, "dtype"), "float32", "y is of type float32, and has a range of integers"),
        (("inputs", 1, "values", "high"), 0, "y goes from 0 to before 0"),
        (("inputs", 1, "columns"), [{"low": 0, "high": 1, "ignore_index": None}] * 7, "y [8] has ranges for 7 columns"),
        (("inputs", 1, "columns"), [{"low": 3, "high": 3, "ignore_index": None}] * 8, "y goes from 3 to before 3"),
        (("inputs", 1, "values", "ignore_index"), 2**63, f"ignore_index is {2**63}"),
        (("class_axis",), 7, "class_axis is 7 with logits [8, 10]"),
    ],
)
def test_what_contradicts_itself_is_refused(path, value, said):
    with pytest.raises(FqtError) as caught:
        Manifest.from_json(changed(*path, value=value))
    assert (caught.value.code, caught.value.message) == ("FQT502", f"manifest.json contradicts itself: {said}")


BUCKETS = (
    Bucket(((8, 3, 4, 4), (8,)), (8, 10), ("param/w", "step"), ("param/w",)),
    Bucket(((2, 3, 6, 4), (2,)), (2, 10), ("param/w", "step"), ("param/w",)),
)


def test_buckets_are_variants_of_the_same_step():
    manifest = dataclasses.replace(MANIFEST, buckets=BUCKETS)
    assert Manifest.from_json(manifest.to_json()) == manifest
    first, second = manifest.variants
    assert (first.inputs, first.logits, first.state) == (manifest.inputs, manifest.logits, ("param/w", "step"))
    assert (second.number, second.batch, second.inputs[0].shape) == (1, 2, (2, 3, 6, 4))
    assert second.inputs[1].values == manifest.inputs[1].values
    assert [function_name("predict", variant.number) for variant in (first, second)] == ["predict", "predict_1"]
    (only,) = MANIFEST.variants
    assert only == dataclasses.replace(first, predict_state=MANIFEST.predict_state)


@pytest.mark.parametrize(
    ("number", "change", "said"),
    [
        (0, {"shapes": ((4, 3, 4, 4), (4,))}, "the first bucket is not that of the inputs"),
        (1, {"shapes": ((2, 3, 6, 4), (3,))}, "bucket 1 is not of one batch"),
        (1, {"shapes": ((2, 3, 6), (2,))}, "bucket 1 has an impossible shape"),
        (1, {"shapes": ((2, 3, 6, 2**60), (2,))}, "bucket 1 has an impossible shape"),
        (1, {"shapes": ((2, 3, 6, 4),)}, "bucket 1 has 1 inputs"),
        (1, {"logits": (3, 10)}, "bucket 1 is not of one batch"),
        (1, {"state": ("param/v",)}, "the state has no param/v"),
        (1, {"shapes": ((8, 3, 4, 4), (8,)), "logits": (8, 10)}, "two buckets have the same shapes"),
    ],
)
def test_buckets_that_contradict_themselves_are_refused(number, change, said):
    buckets = [*BUCKETS]
    buckets[number] = dataclasses.replace(buckets[number], **change)
    with pytest.raises(FqtError) as caught:
        Manifest.from_json(dataclasses.replace(MANIFEST, buckets=tuple(buckets)).to_json())
    assert caught.value.message == f"manifest.json contradicts itself: {said}"


def test_manifests_of_two_unnamed_inputs_are_still_read():
    def old(**own):
        data = json.loads(MANIFEST.to_json())
        data["inputs"] = [{k: spec[k] for k in ("name", "shape", "dtype")} for spec in data["inputs"]]
        for layer in data["layers"]:
            del layer["activation_bits"]
        del data["prediction"], data["class_axis"], data["buckets"]
        return json.dumps({**data, **own})

    third = Manifest.from_json(old(schema_version=3, label_range=[0, 10], ignore_index=-1, class_axis=None))
    assert third == MANIFEST
    second = Manifest.from_json(old(schema_version=2, classes=10))
    assert second.inputs[1].values == IndexRange(0, 10)
    assert Manifest.from_json(old(schema_version=2)).labels is None
    with pytest.raises(FqtError, match=r"FQT502: .*label_range is 3"):
        Manifest.from_json(old(schema_version=3, label_range=3, ignore_index=None, class_axis=None))


@pytest.mark.parametrize(
    ("file", "constant"),
    [("fqt_deploy/c_api/src/artifact.cc", "kSchemaVersion"), ("js/src/model_manifest.js", "SCHEMA")],
)
def test_readers_in_other_languages_know_the_version(file, constant):
    text = (Path(__file__).parents[2] / file).read_text()
    assert re.findall(rf"\b{constant} = (\d+);", text) == [str(SCHEMA_VERSION)]
