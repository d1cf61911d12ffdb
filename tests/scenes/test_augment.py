import numpy as np
import pytest
import torch

from rsseglab.scenes.augment import Augmentation
from rsseglab.scenes.raster import Window

ALL = [Augmentation(turns, flip) for turns in range(4) for flip in (False, True)]


@pytest.mark.parametrize("size", [(12, 12), (12, 20)])
@pytest.mark.parametrize("augmentation", ALL, ids=str)
def test_parts_put_together_are_the_augmented_window(augmentation, size):
    x = torch.arange(size[0] * size[1]).reshape(size)
    whole = augmentation.move(x)
    expected = np.rot90(x.numpy()[:, ::-1] if augmentation.flip else x.numpy(), augmentation.turns)
    assert np.array_equal(whole, expected)
    height, width = whole.shape
    for part in (Window(0, 0, 5, width), Window(5, 0, height - 5, 7), Window(3, 7, 4, width - 7)):
        row, col, tall, wide = augmentation.source(part, *size)
        read = augmentation.move(x[row : row + tall, col : col + wide])
        assert torch.equal(read, whole[part.row : part.row + part.height, part.col : part.col + part.width])


def test_draws():
    draws = [Augmentation.draw(3, i) for i in range(400)]
    assert draws == [Augmentation.draw(3, i) for i in range(400)] != [Augmentation.draw(4, i) for i in range(400)]
    assert {d.turns for d in draws} == {0, 1, 2, 3} and 150 < sum(d.flip for d in draws) < 250
    assert 150 < sum(d.brightness == 0 for d in draws) < 250 and 150 < sum(d.contrast == 1 for d in draws) < 250
    assert {Augmentation.draw(3, i, square=False).turns for i in range(50)} == {0, 2}


def test_shade():
    mean, std = torch.tensor([100.0, 5.0]), torch.tensor([20.0, 2.0])
    image = torch.rand(2, 3, 3) * 100
    shaded = Augmentation(brightness=0.1, contrast=1.2).shade(image, mean, std)
    z, z_ = ((x - mean[:, None, None]) / std[:, None, None] for x in (image, shaded))
    assert torch.allclose(z_, 1.2 * (z + 0.1), atol=1e-5)
    assert Augmentation().shade(image, mean, std) is image
