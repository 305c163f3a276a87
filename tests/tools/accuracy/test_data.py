import io
import pickle

import numpy as np
import pytest
from PIL import Image

from fqt_deploy.core.diagnostics import FqtError
from tools.accuracy.data import load_dataset


def png(level):
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), (level, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def pixels(count):
    return np.random.default_rng(0).integers(0, 256, (count, 3072)).astype(np.uint8)


def test_digits_are_split_once_and_for_all():
    data = load_dataset("digits", cache=None)
    assert data.classes == 10
    assert data.train_x.shape == (1347, 1, 8, 8)
    assert len(data.test_x) == 450
    assert data.train_x.max() == 240


def test_an_npz_of_jpegs_is_decoded_once(tmp_path):
    files = [png(level) for level in (0, 100, 200)]
    arrays = {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": np.array([1, 0, 1], np.uint8),
    }
    path = tmp_path / "images.npz"
    np.savez(path, **{f"{part}_{name}": array for part in ("train", "test") for name, array in arrays.items()})
    data = load_dataset(str(path), tmp_path / "cache")
    assert data.train_x.shape == (3, 3, 32, 32)
    assert data.train_x[:, 0, 3, 3].tolist() == [0, 100, 200]
    assert data.test_y.tolist() == [1, 0, 1]
    (stored,) = (tmp_path / "cache").iterdir()
    before = stored.stat().st_mtime_ns
    np.testing.assert_array_equal(load_dataset(str(path), tmp_path / "cache").train_x, data.train_x)
    assert stored.stat().st_mtime_ns == before


def test_binary_and_python_batches_of_cifar_are_the_same_data(tmp_path):
    rows, labels = pixels(6), np.array([0, 1, 1, 0, 1, 0], np.uint8)
    for form in ("binary", "python"):
        (tmp_path / form).mkdir()
    for name, part in (("data_batch_1", slice(0, 2)), ("data_batch_2", slice(2, 4)), ("test_batch", slice(4, 6))):
        content = np.concatenate([labels[part, None], rows[part]], axis=1)
        (tmp_path / "binary" / f"{name}.bin").write_bytes(content.tobytes())
        batch = {b"data": rows[part], b"labels": labels[part].tolist()}
        (tmp_path / "python" / name).write_bytes(pickle.dumps(batch))
    binary, python = (load_dataset(str(tmp_path / form), tmp_path / "cache") for form in ("binary", "python"))
    np.testing.assert_array_equal(binary.train_x, rows[:4].reshape(-1, 3, 32, 32))
    for name in ("train_x", "train_y", "test_x", "test_y"):
        np.testing.assert_array_equal(getattr(binary, name), getattr(python, name))


def test_a_pickle_cannot_run_code(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(print))
    with pytest.raises(FqtError, match="print"):
        load_dataset(str(tmp_path), tmp_path / "cache")


def test_a_folder_of_class_folders(tmp_path):
    for part in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "a.png").write_bytes(png(50 + 100 * label))
    data = load_dataset(str(tmp_path), tmp_path / "cache")
    assert sorted(data.train_y.tolist()) == [0, 1]
    np.testing.assert_array_equal(data.train_x[:, 0, 0, 0], 50 + 100 * data.train_y)


@pytest.mark.parametrize("content", ["nothing", "npz", "text"])
def test_what_is_no_data_set_is_one_clear_error(tmp_path, content):
    path = tmp_path / "data"
    if content == "npz":
        path = tmp_path / "data.npz"
        np.savez(path, other=np.zeros(1))
    if content == "text":
        (path / "train" / "cat").mkdir(parents=True)
        (path / "train" / "cat" / "readme.txt").write_text("no image")
    with pytest.raises(FqtError) as error:
        load_dataset(str(path), tmp_path / "cache")
    assert error.value.code == "FQT103"
    assert not (tmp_path / "cache").exists()
