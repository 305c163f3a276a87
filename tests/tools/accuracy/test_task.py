import numpy as np
import pytest

from tools.accuracy.data import Dataset, load_dataset
from tools.accuracy.task import make_task


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", cache=None)


def test_source_and_target_classes_are_disjoint_and_renumbered(digits):
    source, target = make_task(digits, "pretrain"), make_task(digits, "transfer")
    for task, offset in ((source, 0), (target, 5)):
        assert task.classes == 5
        for part, labels in ((task.test, digits.test_y),):
            assert len(part.y) == np.isin(labels, range(offset, offset + 5)).sum()
        assert set(task.train.y) == set(task.val.y) == set(range(5))


def test_validation_images_are_held_out_whatever_is_trained_on(digits):
    whole, part = make_task(digits, "transfer"), make_task(digits, "transfer", 100)
    np.testing.assert_array_equal(whole.val.x, part.val.x)
    assert np.bincount(part.train.y).tolist() == [20] * 5
    held_out = {image.tobytes() for image in whole.val.x}
    trained = {image.tobytes() for image in whole.train.x}
    assert len(trained & held_out) == 0
    assert len(whole.val.x) == pytest.approx(0.1 * (len(whole.val.x) + len(whole.train.x)), abs=5)


def test_augmentation_depends_on_its_seed_only_and_keeps_images_whole():
    x = np.zeros((20, 3, 32, 32), np.uint8)
    x[:, :, 15:17, 15:17] = 255
    task = make_task(Dataset(x, np.arange(20) % 2, x, np.arange(20) % 2), "scratch")
    index = np.arange(5)
    images, labels = task.augmented(index, (0, 3))
    np.testing.assert_array_equal(images, task.augmented(index, (0, 3))[0])
    assert (images != task.augmented(index, (0, 4))[0]).any()
    assert images.shape == (5, 3, 32, 32)
    assert labels.tolist() == [0] * 5
    np.testing.assert_array_equal((images > 1).sum((1, 2, 3)), [12] * 5)  # the square has moved, nothing is lost


def test_mirroring_is_left_out_where_it_changes_the_class(digits):
    task = make_task(digits, "transfer", mirrored=False)
    images, _ = task.augmented(np.arange(30), (0, 0))
    plain = task.normalized(task.train.x[:30])
    for image, original in zip(images, plain, strict=True):
        shifted = [np.roll(original, (row, column), (1, 2)) for row in (-1, 0, 1) for column in (-1, 0, 1)]
        assert any(np.isclose(image[:, 1:-1, 1:-1], other[:, 1:-1, 1:-1]).all() for other in shifted)
