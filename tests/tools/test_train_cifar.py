import io

import numpy as np
import pytest
from PIL import Image

from tools.train_cifar import MEAN, STD, Run, load_images, train


class FallingLoss:
    def __init__(self):
        self.lr = 0.0
        self.rates = []

    def step(self, x, y):
        assert len(x) == len(y) == 4
        self.rates.append(self.lr)
        return 1.0 / len(self.rates)


@pytest.fixture
def data(tmp_path):
    files = []
    for level in (0, 128, 255):
        stream = io.BytesIO()
        Image.new("RGB", (32, 32), (level, level, level)).save(stream, "JPEG")
        files.append(stream.getvalue())
    path = tmp_path / "images.npz"
    np.savez(
        path,
        train_jpeg=np.frombuffer(b"".join(files), np.uint8),
        train_offsets=np.cumsum([0, *map(len, files)]),
        train_labels=np.array([7, 8, 9], np.uint8),
    )
    return path


def test_images_are_decoded_and_normalized(data):
    x, y = load_images(data, "train", 2)
    assert x.shape == (2, 3, 32, 32)
    assert x.dtype == np.float32
    assert y.tolist() == [7, 8]
    np.testing.assert_allclose(x[0, :, 5, 5], -MEAN / STD, atol=0.05)
    np.testing.assert_allclose(x[1, :, 5, 5], (128 / 255 - MEAN) / STD, atol=0.05)


def test_more_images_than_there_are_gives_all(data):
    assert len(load_images(data, "train", 100)[0]) == 3


def test_runs_get_the_same_steps_and_report(capsys):
    runs = [Run("a", FallingLoss(), 0.1), Run("b", FallingLoss(), 0.2)]
    train(runs, np.zeros((9, 3, 32, 32), np.float32), np.zeros(9, np.int64), batch=4, steps=60)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["steps 1-50", "steps 51-60"]
    assert runs[1].session.rates == pytest.approx([2 * rate for rate in runs[0].session.rates])
    summary = runs[0].summary()
    assert summary["first"] > summary["last"] == pytest.approx(np.mean([1 / n for n in range(41, 61)]))
