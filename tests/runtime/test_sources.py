"""Sources of training data: every kind gives the same samples in any order, and says what is wrong with a file."""

from __future__ import annotations

import io
import struct
import tarfile
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import InputSpec, Manifest
from fqt_deploy.runtime.event_file import EventFile
from fqt_deploy.runtime.load_ahead import LoaderTime, load_ahead
from fqt_deploy.runtime.preparation import Preparation, Prepared
from fqt_deploy.runtime.sources import images
from fqt_deploy.runtime.sources import in_threads as threads
from fqt_deploy.runtime.sources.images import decoded
from fqt_deploy.runtime.sources.open_source import is_source, open_source

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (7, 3, 6, 4), dtype=np.uint8)
LABELS = np.array([1, 0, 1, 1, 0, 2, 2])
ORDER = np.array([5, 0, 6, 2, 2])


class Step:
    """What a source needs to know of a manifest."""

    def __init__(self, shape: tuple[int, ...] = (3, 6, 4), targets: tuple[int, ...] = (), dtype: str = "int64") -> None:
        self.model_inputs = (InputSpec("x", (2, *shape), "float32", "input"),)
        self.targets = (InputSpec("y", (2, *targets), dtype, "target"),)
        self.inputs = (*self.model_inputs, *self.targets)


def step(*arguments: Any) -> Manifest:
    return Step(*arguments)  # type: ignore[return-value]


def png(image: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def as_arrays(folder: Path) -> Path:
    np.save(folder / "x.npy", IMAGES)
    np.save(folder / "y.npy", LABELS)
    return folder


def as_shards(folder: Path) -> Path:
    for shard, rows in enumerate((range(3), range(3, 7))):
        members = {}
        for i in rows:
            members |= {f"set/{i}.png": png(IMAGES[i]), f"set/{i}.cls": b"%d\n" % LABELS[i]}
        write_tar(folder / f"part{shard}.tar", members)
    return folder


def as_array_shard(folder: Path) -> Path:
    members = {}
    for i in range(7):
        members |= {f"{i}.x.npy": npy(IMAGES[i]), f"{i}.y.npy": npy(LABELS[i])}
    return write_tar(folder / "all.tar", members)


@pytest.mark.parametrize("write", [as_arrays, as_shards, as_array_shard])
def test_samples_come_in_any_order(write: Any, tmp_path: Path) -> None:
    path = write(tmp_path)
    assert is_source(path)
    source = open_source(path, step())
    assert len(source) == 7
    x, y = source.rows(ORDER)
    assert x.dtype == np.uint8
    assert np.array_equal(x, IMAGES[ORDER])
    assert np.array_equal(y, LABELS[ORDER])


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    for i, label in enumerate(LABELS):
        folder = tmp_path / "abc"[label] / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.PNG").write_bytes(png(IMAGES[i]))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    source = open_source(tmp_path, step())
    assert source.classes == ("a", "b", "c")  # type: ignore[attr-defined]
    sorted_rows = np.argsort(LABELS, kind="stable")
    x, y = source.rows(np.arange(7))
    assert np.array_equal(y, np.sort(LABELS))
    assert np.array_equal(x, IMAGES[sorted_rows])


def test_images_of_other_sizes_are_scaled_and_cut_at_the_middle() -> None:
    wide = np.zeros((3, 6, 16), np.uint8)
    wide[:, :, 5:11] = 200
    assert decoded(png(wide), "wide.png", (3, 6, 6)).min() == 200
    grey = decoded(png(wide), "wide.png", (1, 3, 3))
    assert grey.shape == (1, 3, 3)
    assert grey[..., 1].min() == 200


@pytest.mark.parametrize(
    ("text", "x", "y"),
    [
        ("a,label,b\n1,0,2.5\n3,1,4\n", [[1, 2.5], [3, 4]], [0, 1]),
        ("1,2.5,0\n3,4,1\n", [[1, 2.5], [3, 4]], [0, 1]),
        ("\ufeffa,b,c\n1,2.5,0.5\n3,4,1\n", [[1, 2.5], [3, 4]], [0.5, 1.0]),
    ],
)
def test_a_table_has_its_target_by_name_or_last(tmp_path: Path, text: str, x: Any, y: Any) -> None:
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
    found = open_source(tmp_path / "rows.csv", step((2,))).rows(np.array([1, 0]))
    assert found[0].tolist() == x[::-1]
    assert found[1].tolist() == y[::-1]
    assert found[1].dtype == (np.float32 if 0.5 in y else np.int64)


def test_a_table_of_pyarrow(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")

    pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("pyarrow.feather")
    table = arrow.table({"a": [1, 3], "label": [0, 1], "b": [2.5, 4.0]})
    arrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=1)
    arrow.feather.write_feather(table, str(tmp_path / "t.feather"))
    with arrow.OSFile(str(tmp_path / "t.arrow"), "wb") as file, arrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    for name in ("t.parquet", "t.feather", "t.arrow"):
        x, y = open_source(tmp_path / name, step((2,))).rows(np.array([1, 0, 1]))
        assert (x.tolist(), y.tolist()) == ([[3, 4], [1, 2.5], [3, 4]], [1, 0, 1])
    arrow.parquet.write_table(arrow.table({"a": ["x"], "b": [1], "c": [1]}), tmp_path / "t.parquet")
    with pytest.raises(FqtError, match=r"t\.parquet.*FQT510|FQT510.*t\.parquet"):
        open_source(tmp_path / "t.parquet", step((2,)))


ROWS, COLUMNS = 60_000, 20


def as_csv(path: Path, values: Any) -> Path:
    names = ",".join(f"c{i}" for i in range(COLUMNS))
    np.savetxt(path.with_suffix(".csv"), values, "%.9g", ",", header=names, comments="")
    return path.with_suffix(".csv")


def as_parquet(path: Path, values: Any) -> Path:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({f"c{i}": values[:, i] for i in range(COLUMNS)})
    parquet.write_table(table, path.with_suffix(".parquet"), row_group_size=10_000)
    return path.with_suffix(".parquet")


@pytest.mark.parametrize("write", [as_csv, as_parquet])
def test_a_table_is_read_in_blocks(tmp_path: Path, write: Any) -> None:
    """What it takes of memory is a part of the table: a block of rows and the targets; all rows come in any order."""
    values = np.random.default_rng(1).standard_normal((ROWS, COLUMNS), dtype=np.float32)
    path = write(tmp_path / "rows", values)
    tracemalloc.start()
    source = open_source(path, step((COLUMNS - 1,), (), "float32"))
    order = np.random.default_rng(2).permutation(ROWS)
    for part in np.array_split(order, 300):
        x, y = source.rows(part)
        assert np.array_equal(x, values[part, :-1])
        assert np.array_equal(y, values[part, -1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < ROWS * COLUMNS * 4 / 1.2, f"{peak / 1e6:.1f} MB of {ROWS * COLUMNS * 4 / 1e6:.1f}"


def test_quotes_blank_lines_and_what_stands_late_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('a,b,y\r\n"1",2,0\r\n\r\n3, 4 ,1\r\n')
    assert open_source(tmp_path / "rows.csv", step((2,))).rows(np.arange(2))[0].tolist() == [[1, 2], [3, 4]]
    (tmp_path / "late.csv").write_text("1,2,3\n" * 5000 + "1,2,x\n")
    with pytest.raises(FqtError, match="row 5001 holds 'x'"):
        open_source(tmp_path / "late.csv", step((2,)))
    (tmp_path / "wide.csv").write_text("1,2,3\n" * 4096 + "1,2,3,4\n" * 4096)
    with pytest.raises(FqtError, match="row 4097 has 4 columns, not 3"):
        open_source(tmp_path / "wide.csv", step((2,)))


def test_a_temporary_folder_without_space_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "rows.csv").write_text("1,2,3\n")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: (tmp_path / "rows.csv").open("rb"))
    with pytest.raises(FqtError, match="do not fit into a temporary file") as caught:
        open_source(tmp_path / "rows.csv", step((2,)))
    assert "TMPDIR" in (caught.value.hint or "")


def jpeg(mode: str, size: tuple[int, int] = (4, 6)) -> bytes:
    file = io.BytesIO()
    shade = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(shade).convert(mode).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(4, 6), (40, 31)])
def test_every_decoder_gives_the_same_pixels(monkeypatch: Any, channels: int, mode: str, size: tuple[int, int]) -> None:
    pytest.importorskip("simplejpeg")
    content = jpeg(mode, size)
    found = decoded(content, "1.jpg", (channels, 6, 4))
    monkeypatch.setattr(images, "_simplejpeg", lambda: None)
    assert np.array_equal(found, decoded(content, "1.jpg", (channels, 6, 4)))


def test_threads_decode_in_order(monkeypatch: Any) -> None:
    monkeypatch.setattr(threads, "decoding_threads", lambda: 3)
    assert threads.in_threads(lambda n: n * n, list(range(10))) == [n * n for n in range(10)]
    assert threads.in_threads(str, []) == []
    with pytest.raises(ZeroDivisionError):
        threads.in_threads(lambda n: 1 / n, [1, 2, 0, 3])


def broken(folder: Path, what: str) -> Path:
    files: dict[str, bytes] = {
        "nothing.bin": b"", "empty.csv": b"", "text.csv": b"a,b,y\n1,2,x\n", "short.csv": b"1,2,3\n1,2\n",
        "wide.csv": b"1,2,3,4\n", "bad.tar": b"no tar", "bad.parquet": b"no table",
    }  # fmt: skip
    if what in files:
        (folder / what).write_bytes(files[what])
        return folder / what
    if what == "no target.tar":
        return write_tar(folder / what, {"1.png": png(IMAGES[0])})
    if what == "bad image.tar":
        return write_tar(folder / what, {"1.png": b"x", "1.cls": b"0"})
    if what == "bad label.tar":
        return write_tar(folder / what, {"1.png": png(IMAGES[0]), "1.cls": b"cat"})
    if what == "lengths":
        np.save(folder / "x.npy", IMAGES)
        np.save(folder / "y.npy", LABELS[:3])
    if what == "pickled":
        np.save(folder / "x.npy", np.array([{}], dtype=object))
        np.save(folder / "y.npy", LABELS)
    if what == "no images":
        (folder / "cats").mkdir()
    return folder / "missing" if what == "missing" else folder


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "does not exist"), ("nothing.bin", "no reader for .bin"), ("empty.csv", "no rows"),
        ("text.csv", "row 1 holds 'x'"), ("short.csv", "row 2 has 2 columns, not 3"),
        ("wide.csv", "3 columns beside the target"), ("bad.tar", "no tar file"), ("bad.parquet", "cannot use"),
        ("no target.tar", "sample 1 has .png"), ("bad image.tar", "no image, or damaged"),
        ("bad label.tar", "no integer"), ("lengths", "x.npy has 7 rows, y.npy 3"), ("pickled", "x.npy"),
        ("no images", "no images"), ("empty folder", "no folders of images"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said(tmp_path: Path, what: str, said: str) -> None:
    shape = (2,) if what.endswith((".csv", ".parquet")) else (3, 6, 4)
    with pytest.raises(FqtError) as caught:
        open_source(broken(tmp_path, what), step(shape)).rows(np.array([0]))
    assert caught.value.code == "FQT510"
    assert said in caught.value.message


def test_samples_are_scaled_and_normalized(tmp_path: Path) -> None:
    prepared = Prepared(open_source(as_arrays(tmp_path), step()), Preparation((0.5, 0.25, 0), (0.5,)), step(), "set")
    x, y = prepared.batch(ORDER).values()
    expected = (IMAGES[ORDER] / 255 - np.array([0.5, 0.25, 0]).reshape(3, 1, 1)) / 0.5
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)


def test_augmentation_depends_on_seed_epoch_and_sample_alone(tmp_path: Path) -> None:
    source = open_source(as_arrays(tmp_path), step())
    prepared = Prepared(source, Preparation(flip=True, crop=2), step(), "set", seed=3)
    whole = prepared.batch(np.arange(7), 4)["x"]
    assert np.array_equal(prepared.batch(ORDER, 4)["x"], whole[ORDER])
    assert not np.array_equal(prepared.batch(np.arange(7), 5)["x"], whole)
    assert not np.array_equal(
        Prepared(source, prepared.preparation, step(), "set", 4).batch(np.arange(7), 4)["x"], whole
    )
    plain = prepared.batch(np.arange(7))["x"]
    for image, origin in zip(whole, plain, strict=True):
        padded = np.pad(origin, ((0, 0), (2, 2), (2, 2)))
        cuts = [padded[:, i : i + 6, j : j + 4] for i in range(5) for j in range(5)]
        assert any(np.array_equal(image, cut[..., ::turn]) for cut in cuts for turn in (1, -1))


@pytest.mark.parametrize(
    ("preparation", "shape"),
    [
        (Preparation(mean=(1.0, 2.0)), (3, 6, 4)),
        (Preparation(std=(0.0,)), (3, 6, 4)),
        (Preparation(flip=True), (8,)),
    ],
)
def test_what_samples_cannot_be_prepared_by(preparation: Preparation, shape: tuple[int, ...]) -> None:
    with pytest.raises(FqtError) as caught:
        preparation.check(shape)
    assert caught.value.code == "FQT202"


def test_samples_of_another_shape_or_type_are_refused(tmp_path: Path) -> None:
    source = open_source(as_arrays(tmp_path), step())
    for other in (step((3, 6, 5)), step((3, 6, 4), (2,))):
        with pytest.raises(FqtError, match="the step takes") as caught:
            Prepared(source, Preparation(), other, "set").batch(ORDER)
        assert caught.value.code == "FQT510"
    column = Prepared(source, Preparation(), step((3, 6, 4), (1,), "float32"), "set").batch(ORDER)["y"]
    assert (column.shape, column.dtype) == ((5, 1), np.float32)


def test_batches_are_loaded_ahead_in_order_and_errors_come_where_they_belong() -> None:
    spent = LoaderTime()

    def load(key: int) -> int:
        if key == 6:
            raise FqtError("damaged", code="FQT510")
        return key * key

    found = []
    with load_ahead(load, range(9), spent) as batches:
        for _ in range(6):
            found.append(next(batches))
        with pytest.raises(FqtError, match="damaged"):
            next(batches)
    assert found == [0, 1, 4, 9, 16, 25]
    with load_ahead(load, range(6)) as batches:
        assert list(batches) == [0, 1, 4, 9, 16, 25]
    assert spent.batches == 6
    with load_ahead(load, iter(lambda: 1, 0)) as batches:  # endless: the context ends the thread
        assert next(batches) == 1


def test_scalars_are_records_that_tensorboard_reads(tmp_path: Path) -> None:
    """The checksums are CRC-32C, masked; that of "123456789" is known."""
    from fqt_deploy.runtime.event_file import _masked

    crc = struct.unpack("<I", _masked(b"123456789"))[0] - 0xA282EAD8 & 0xFFFFFFFF
    assert (crc << 15 | crc >> 17) & 0xFFFFFFFF == 0xE3069283
    events = EventFile(tmp_path / "logs")
    events.scalar("loss", 0.5, 300)
    events.close()
    (file,) = (tmp_path / "logs").iterdir()
    content, records = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        assert content[8:12] == _masked(content[:8])
        records.append(content[12 : 12 + length])
        assert content[12 + length : 16 + length] == _masked(records[-1])
        content = content[16 + length :]
    assert b"brain.Event:2" in records[0]
    assert records[1][9:] == b"\x10\xac\x02*\x0d\x0a\x0b\x0a\x04loss\x15\x00\x00\x00?"
