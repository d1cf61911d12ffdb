"""Blocks of a scene for training and validation: apart, with a gap, and every class where it can be."""

import numpy as np
import pytest
from made import write_raster

from rsseglab.errors import UserError
from rsseglab.scenes import IGNORE_INDEX, LabelClass, Scene
from rsseglab.scenes.split import split_scenes

CLASSES = tuple(LabelClass(str(value), value, (value, 0, 0)) for value in range(3))
CROP = 32


def scene_of(folder, label, name="s"):
    write_raster(folder / f"{name}_image.tif", np.ones((1, *label.shape), np.uint8))
    write_raster(folder / f"{name}_label.tif", label.astype(np.uint8))
    return Scene(folder / f"{name}_image.tif", folder / f"{name}_label.tif", CLASSES, [IGNORE_INDEX], name=name)


def patches(seed, height=330, width=410, count=60):
    """Small labelled squares here and there."""
    draw, label = np.random.default_rng(seed), np.full((height, width), IGNORE_INDEX)
    for _ in range(count):
        row, col = draw.integers(height - 12), draw.integers(width - 12)
        label[row : row + 12, col : col + 12] = draw.integers(3)
    return label


def mask_of(parts, label, name="s"):
    mask = np.zeros(label.shape, int)
    for part in parts:
        if part.of == name:
            row, col, height, width = part.window
            assert min(row, col) >= 0 and row + height <= label.shape[0] and col + width <= label.shape[1]
            mask[row : row + height, col : col + width] += 1
    return mask


@pytest.mark.parametrize("seed", range(6))
def test_parts_are_apart_and_count_what_they_hold(tmp_path, seed):
    label = patches(seed, 330 + 31 * seed)
    split = split_scenes([scene_of(tmp_path, label)], CROP)
    train, val = mask_of(split.train, label), mask_of(split.val, label)
    assert train.max() == val.max() == 1  # no pixel twice
    rows, cols = np.nonzero(train)
    far = []
    for row, col, height, width in (part.window for part in split.val):
        down = np.maximum(np.maximum(row - rows, rows - (row + height - 1)), 0)
        along = np.maximum(np.maximum(col - cols, cols - (col + width - 1)), 0)
        far.append(np.maximum(down, along).min())
    assert min(far) > split.gap_px == CROP // 2  # so many px lie between the two
    for counted, mask in ((split.train_px, train), (split.val_px, val)):
        np.testing.assert_array_equal(counted, [((label == k) & (mask > 0)).sum() for k in range(3)])
    assert all(min(part.window.height, part.window.width) >= CROP for part in split.train)
    share = split.val_px / np.array([(label == k).sum() for k in range(3)])
    assert (abs(share - 0.25) < 0.15).all()
    assert all((label[r : r + h, c : c + w] != IGNORE_INDEX).any() for r, c, h, w in (p.window for p in split.train))


def test_neighbours_in_a_row_are_one_part(tmp_path):
    label = np.zeros((64, 64 * 8))
    split = split_scenes([scene_of(tmp_path, label)], CROP)
    assert len(split.val) == 2  # a quarter of eight blocks
    assert 1 <= len(split.train) <= 3


def test_a_class_in_one_block_is_learnt(tmp_path):
    label = np.zeros((128, 128))
    label[80:90, 80:90] = 2
    split = split_scenes([scene_of(tmp_path, label)], CROP)
    assert split.train_px[2] == 100 and split.val_px[2] == 0 and split.val_px[0] > 0


def test_several_scenes(tmp_path):
    labels = [patches(0), patches(1)]
    split = split_scenes([scene_of(tmp_path, label, name) for label, name in zip(labels, "ab", strict=True)], CROP)
    assert {part.of for part in split.train} == {"a", "b"}
    for label, name in zip(labels, "ab", strict=True):
        assert not (mask_of(split.train, label, name) & mask_of(split.val, label, name)).any()


def test_what_can_not_be_split(tmp_path):
    label = np.full((256, 256), IGNORE_INDEX)
    label[10:20, 10:20] = 1
    with pytest.raises(UserError, match="labels lie in 1 blocks of 64 px, of which none can be spared"):
        split_scenes([scene_of(tmp_path, label)], CROP)
    with pytest.raises(UserError, match="a share of 1 for validation"):
        split_scenes([scene_of(tmp_path, label)], CROP, 1.0)
