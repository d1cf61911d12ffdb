from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_cdt
from torch import Tensor, nn
from torch.nn import functional as F

from rsseglab.errors import UserError
from rsseglab.scenes.raster import RasterWriter
from rsseglab.scenes.scene import Scene
from rsseglab.scenes.twins import (
    CLASSES,
    DETAIL_PX,
    KEY_PX,
    Twins,
    normalise,
    pair_accuracy,
    twin_scenes,
    write_twin_scenes,
)


@pytest.fixture(scope="module")
def twins() -> Twins:
    return twin_scenes(128, 144, 40, 7)


@pytest.fixture(scope="module")
def matched() -> Twins:
    """The second level, small: four keys, windows up to 24 px."""
    return twin_scenes(112, 280, 24, 5, keys=4)


sizes = st.tuples(st.integers(100, 200), st.integers(280, 330), st.integers(1, 40))


@settings(max_examples=25, deadline=None)
@given(sizes, st.integers(0, 10**6), st.sampled_from([1, 2, 4]))
def test_the_rules_of_the_experiment(size: tuple[int, int, int], seed: int, keys: int) -> None:
    height, width, context_px = size
    context_px = min(context_px, 24) if keys == 4 else context_px
    twins = twin_scenes(height, width, context_px, seed, keys=keys)
    assert twins.images.shape == (2, 3, height, width) and twins.labels.shape == (2, height, width)
    distance = distance_transform_cdt(~twins.key, metric="chessboard")
    assert distance[twins.look_alike].min() >= context_px
    # Outside the keys the images are equal, outside keys and look-alike pixels the labels too.
    assert (twins.images[0] == twins.images[1])[:, ~twins.key].all()
    assert (twins.labels[:, ~twins.key & ~twins.look_alike] == 0).all()
    # In the other twin every key, and so every look-alike pixel, has the other orientation.
    assert (twins.labels[0][twins.look_alike] + twins.labels[1][twins.look_alike] == 3).all()
    assert (twins.labels[0][twins.key] + twins.labels[1][twins.key] == 7).all()
    for label in twins.labels:
        for k in range(keys):
            (key_class,) = np.unique(label[twins.key & (twins.kind == k)])
            assert set(label[twins.look_alike & (twins.kind == k)]) <= {key_class - 2}
    assert twins.key.sum() == keys * KEY_PX**2
    assert ((twins.kind >= 0) == (twins.key | twins.look_alike)).all()


def test_the_first_level_labels_are_one_plus_s_and_three_plus_s(twins: Twins) -> None:
    for s in (0, 1):
        assert (twins.labels[s][twins.look_alike] == 1 + s).all()
        assert (twins.labels[s][twins.key] == 3 + s).all()
    assert twins.look_alike.mean() > 0.05


def test_keys_are_aligned_stripes_of_period_8_with_one_histogram(twins: Twins, matched: Twins) -> None:
    for pair in (twins, matched):
        for k in range(pair.kind.max() + 1):
            rows, cols = np.nonzero(pair.key & (pair.kind == k))
            top, left = rows.min(), cols.min()
            assert top % DETAIL_PX == 0 and left % DETAIL_PX == 0
            for image, label in zip(pair.images, pair.labels, strict=True):
                key = image[:, top : top + KEY_PX, left : left + KEY_PX].astype(int)
                along, across = (2, 1) if label[top, left] == 3 else (1, 2)
                assert (np.diff(key, axis=across) == 0).all()
                assert (np.diff(key.take(range(DETAIL_PX // 2), along), axis=along) == 0).all()
                half = np.roll(key, DETAIL_PX // 2, axis=along)
                assert (np.abs(key - half) > 50).all()
                assert (np.roll(key, DETAIL_PX, axis=along) == key).all()
            histograms = [Counter(map(tuple, image[:, pair.key].T.tolist())) for image in pair.images]
            assert histograms[0] == histograms[1]


def test_a_seed_gives_its_twins_again_and_another_seed_others(twins: Twins) -> None:
    again, other = twin_scenes(128, 144, 40, 7), twin_scenes(128, 144, 40, 8)
    assert (again.images == twins.images).all() and (again.labels == twins.labels).all()
    assert (other.images != twins.images).mean() > 0.5
    places = {tuple(np.argwhere(twin_scenes(128, 144, 40, seed).key)[0]) for seed in range(12)}
    assert len(places) > 6


# --- What is provable -------------------------------------------------------------------------------------


def tensors(twins: Twins) -> tuple[Tensor, Tensor]:
    """Images (2, 3, H, W), normalised, and labels (2, H, W)."""
    return torch.from_numpy(normalise(twins.images)), torch.from_numpy(twins.labels.astype(np.int64))


def starts(size: int, crop_px: int, stride_px: int) -> list[int]:
    return sorted({*range(0, size - crop_px, stride_px), size - crop_px})


def label_by_crops(network: nn.Module, images: Tensor, crop_px: int, stride_px: int) -> Tensor:
    """Mean scores of overlapping crops, one scene and one row of crops at a time."""
    height, width = images.shape[-2:]
    scores, count = torch.zeros(len(images), 5, height, width), torch.zeros(height, width)
    for row in starts(height, crop_px, stride_px):
        cols = starts(width, crop_px, stride_px)
        for col in cols:
            count[row : row + crop_px, col : col + crop_px] += 1
        for scene, image in zip(scores, images, strict=True):
            crops = torch.stack([image[:, row : row + crop_px, col : col + crop_px] for col in cols])
            for col, answer in zip(cols, network(crops), strict=True):
                scene[:, row : row + crop_px, col : col + crop_px] += answer
    return scores / count


class FourStages(nn.Module):
    """A 4-stage convolutional encoder, context between its tokens at stride 16, and a light decoder.

    A token sees a window of 91 px. Context: "none"; "attention", one layer with four heads over all tokens;
    "placed attention", the same with sine and cosine of the tokens' rows and columns added to queries and
    keys; "pooling", the tokens' mean added to each.
    """

    def __init__(self, context: str, widths: tuple[int, ...] = (16, 32, 48, 64)) -> None:
        super().__init__()
        self.context = context
        self.stages = nn.ModuleList(
            nn.Sequential(self.convolution(inputs, outputs, 2), self.convolution(outputs, outputs, 1))
            for inputs, outputs in zip((3, *widths[:-1]), widths, strict=True)
        )
        channels = widths[-1]
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, 4, batch_first=True)
        self.pooled = nn.Linear(channels, channels)
        self.mix = nn.Sequential(nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels))
        self.head = nn.Sequential(nn.Conv2d(channels + sum(widths[:2]), 64, 1), nn.ReLU(), nn.Conv2d(64, 5, 1))

    @staticmethod
    def convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        height, width = maps[-1].shape[2:]
        tokens = maps[-1].flatten(2).transpose(1, 2)  # (B, N, C)
        tokens = tokens + self.between(self.norm(tokens), height, width)
        tokens = tokens + self.mix(tokens)
        coarse = tokens.transpose(1, 2).unflatten(2, (height, width))
        fine = [F.interpolate(m, scale_factor=k) for m, k in ((coarse, 8), (maps[1], 1), (maps[2], 2))]
        return F.interpolate(self.head(torch.cat(fine, dim=1)), scale_factor=2)

    def between(self, tokens: Tensor, height: int, width: int) -> Tensor | float:
        if self.context == "none":
            return 0.0
        if self.context == "pooling":
            return self.pooled(tokens.mean(dim=1, keepdim=True))
        query = tokens + places(height, width, tokens.shape[2]) if "placed" in self.context else tokens
        return self.attention(query, query, tokens, need_weights=False)[0]


def places(height: int, width: int, channels: int) -> Tensor:
    """Sines and cosines of rows and columns, wavelengths from 2 to 512 tokens; shape (N, C)."""
    frequencies = torch.pi * 2.0 ** -torch.linspace(0, 8, channels // 4)
    angles = [torch.arange(size)[:, None] * frequencies for size in (height, width)]
    rows, cols = (torch.cat([a.sin(), a.cos()], dim=1) for a in angles)
    return torch.cat([rows[:, None].expand(-1, width, -1), cols[None].expand(height, -1, -1)], 2).flatten(0, 1)


@settings(max_examples=6, deadline=None)
@given(st.integers(16, 40), st.integers(5, 40), st.integers(0, 100))
def test_crops_up_to_the_distance_answer_both_twins_bit_for_bit_alike(
    twins: Twins, crop_px: int, stride_px: int, seed: int
) -> None:
    assert crop_px <= twins.context_px
    torch.manual_seed(seed)
    network = FourStages("attention").eval()
    crop_px = crop_px // 16 * 16  # what the network takes
    images, labels = tensors(twins)
    with torch.no_grad():
        scores = label_by_crops(network, images, crop_px, min(stride_px, crop_px))
    far = torch.from_numpy(twins.look_alike)
    assert torch.equal(scores[0, :, far], scores[1, :, far])
    assert not torch.equal(scores[0], scores[1])
    assert pair_accuracy(scores, labels) == 0.5


def test_crops_larger_than_the_distance_see_the_key(twins: Twins) -> None:
    torch.manual_seed(0)
    images, _ = tensors(twins)
    with torch.no_grad():
        scores = label_by_crops(FourStages("attention").eval(), images, 96, 16)
    far = torch.from_numpy(twins.look_alike)
    assert not torch.equal(scores[0, :, far], scores[1, :, far])


def test_convolutions_that_see_less_than_the_distance_answer_bit_for_bit_alike() -> None:
    torch.manual_seed(0)
    twins = twin_scenes(256, 256, 96, 3)
    images, labels = tensors(twins)
    with torch.no_grad():
        scores = FourStages("none").eval()(images)
    far = torch.from_numpy(twins.look_alike)
    assert torch.equal(scores[0, :, far], scores[1, :, far])
    assert pair_accuracy(scores, labels) == 0.5


def test_averaging_by_8_makes_the_twins_equal_and_by_4_does_not(twins: Twins, matched: Twins) -> None:
    for pair in (twins, matched):
        images, _ = tensors(pair)
        averaged = F.avg_pool2d(images, pair.detail_px)
        assert torch.equal(averaged[0], averaged[1])
        averaged = F.avg_pool2d(images, pair.detail_px // 2)
        assert not torch.equal(averaged[0], averaged[1])


def test_normalisation_is_fixed_and_exact() -> None:
    values = np.arange(256, dtype=np.uint8)
    scaled = normalise(values)
    assert scaled.dtype == np.float32
    assert (scaled * 64 + 128 == values).all()


# --- The second level -------------------------------------------------------------------------------------


def windows(image: np.ndarray, key: np.ndarray, side_px: int, stride_px: int) -> Counter[bytes]:
    """All windows that touch a key, by content."""
    view = np.lib.stride_tricks.sliding_window_view
    pieces = view(image, (side_px, side_px), axis=(1, 2))[:, ::stride_px, ::stride_px]
    touched = view(key, (side_px, side_px))[::stride_px, ::stride_px].any(axis=(2, 3))
    return Counter(np.ascontiguousarray(pieces[:, i, j]).tobytes() for i, j in np.argwhere(touched))


def test_what_is_pooled_is_equal_in_both_twins(matched: Twins) -> None:
    # Any function of a pixel: its mean is that of the colours' histogram, key by key.
    for k in range(4):
        here = matched.kind == k
        colors = [Counter(map(tuple, image[:, here].T.tolist())) for image in matched.images]
        assert colors[0] == colors[1]
    # As many keys of either orientation, as many look-alike pixels asking.
    for value in (3, 4):
        assert [(label == value).sum() for label in matched.labels] == [2 * KEY_PX**2] * 2
    # And yet each key, and each parcel's answer, is another.
    assert (matched.labels[0] != matched.labels[1])[matched.kind >= 0].all()
    assert {1, 2} <= set(matched.labels[0][matched.look_alike])


@pytest.mark.parametrize("stride_px", [1, 8, 32])
def test_both_twins_have_the_same_windows_up_to_the_distance(matched: Twins, stride_px: int) -> None:
    for side_px in (5, matched.context_px):
        one, other = (windows(image, matched.key, side_px, stride_px) for image in matched.images)
        assert one == other
        assert len(one) >= 2


def test_larger_windows_tell_the_keys_apart(matched: Twins) -> None:
    one, other = (windows(image, matched.key, 2 * matched.context_px + KEY_PX, 4) for image in matched.images)
    assert one != other


def test_a_pooled_network_and_attention_without_places_answer_alike() -> None:
    # Equal but for the order of summation, hence doubles and a tolerance. A token sees 91 px < 96 px.
    torch.manual_seed(0)
    twins = twin_scenes(256, 352, 96, 3, keys=2)
    images, _ = tensors(twins)
    far = torch.from_numpy(twins.look_alike)
    for context, alike in (("pooling", True), ("attention", True), ("placed attention", False)):
        network = FourStages(context).double().eval()
        with torch.no_grad():
            scores = network(images.double())[..., far]
        difference = (scores[0] - scores[1]).abs().max().item()
        assert (difference < 1e-12) == alike, (context, difference)


# --- Score, files, errors ---------------------------------------------------------------------------------


def test_pair_accuracy_has_known_answers(twins: Twins) -> None:
    _, labels = tensors(twins)
    truth = F.one_hot(labels, 5).permute(0, 3, 1, 2).float()
    assert pair_accuracy(truth, labels) == 1
    assert pair_accuracy(truth.flip(0), labels) == 0
    assert pair_accuracy(torch.zeros_like(truth), labels) == 0.5
    # Land and keys may win over both crops: the choice is between these alone.
    truth[:, [0, 3, 4]] += 5
    assert pair_accuracy(truth.numpy(), labels.numpy()) == 1
    # One twin's parcels half right.
    half = truth.clone()
    column = torch.nonzero(labels[0] == 1)[:, 1].median()
    half[0, 2, :, :column] = 3
    expected = 1 - (labels[0] == 1)[:, :column].sum() / (labels[0] == 1).sum() / 2
    assert pair_accuracy(half, labels) == pytest.approx(expected.item())


def test_pair_accuracy_refuses_what_does_not_fit(twins: Twins) -> None:
    _, labels = tensors(twins)
    with pytest.raises(UserError, match="do not fit labels"):
        pair_accuracy(torch.zeros(2, 5, 8, 8), labels)
    with pytest.raises(UserError, match="no look-alike pixel"):
        pair_accuracy(torch.zeros(1, 5, 8, 8), torch.zeros(1, 8, 8))


def test_the_files_hold_the_twins(tmp_path, twins: Twins) -> None:
    paths = write_twin_scenes(tmp_path / "new", "pair", twins)
    names = [path.name for pair in paths for path in pair]
    assert names == ["pair_0_image.tif", "pair_0_label.tif", "pair_1_image.tif", "pair_1_label.tif"]
    for s, (image, label) in enumerate(paths):
        scene = Scene(image, label, CLASSES)
        assert (scene.read() == twins.images[s]).all()
        assert (scene.read_label() == twins.labels[s]).all()
        assert scene.crs.to_epsg() == 32633


def test_a_failure_leaves_no_twin(tmp_path, monkeypatch, twins: Twins) -> None:
    write, calls = RasterWriter.write, []

    def fail_at_the_last(self: RasterWriter, pixels: np.ndarray, row: int, col: int = 0) -> None:
        calls.append(row)
        if len(calls) == 4:
            raise KeyboardInterrupt
        write(self, pixels, row, col)

    monkeypatch.setattr(RasterWriter, "write", fail_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        write_twin_scenes(tmp_path, "pair", twins)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("height", "width", "context_px", "keys", "message"),
    [
        (256, 256, 96, 3, "1 key or an even number"),
        (256, 256, 96, 0, "1 key or an even number"),
        (256, 256, 0, 1, "context_px of at least 1"),
        (31, 256, 20, 1, "too small"),
        (128, 128, 110, 1, "too small"),
        (256, 351, 96, 2, "too small"),
    ],
)
def test_what_cannot_be_built_is_refused(height, width, context_px, keys, message) -> None:
    with pytest.raises(UserError, match=message):
        twin_scenes(height, width, context_px, 0, keys=keys)


# --- The experiment itself --------------------------------------------------------------------------------


def batch(seeds: range, size: tuple[int, int], keys: int) -> tuple[Tensor, Tensor]:
    pairs = [tensors(twin_scenes(*size, 96, seed, keys=keys)) for seed in seeds]
    return torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])


def train(
    context: str, seed: int, steps: int, *, size: tuple[int, int] = (256, 256), keys: int = 1, view=lambda *x: x
) -> FourStages:
    """AdamW with a one-cycle schedule, two new pairs a step; ``view`` is what the network sees of them."""
    torch.manual_seed(seed)
    network = FourStages(context)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.2)
    for step in range(steps):
        first = 100_000 * (seed + 1) + 2 * step
        images, labels = view(*batch(range(first, first + 2), size, keys))
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


UNSEEN = range(8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_attention_over_the_whole_scene_reads_the_key(seed: int) -> None:
    network = train("attention", seed, 200)
    images, labels = batch(UNSEEN, (256, 256), 1)
    with torch.no_grad():
        accuracy = pair_accuracy(network(images), labels)
    print(f"attention, whole scenes, seed {seed}: pair accuracy {accuracy:.5f}")
    assert accuracy >= 0.999


@pytest.mark.slow
def test_crops_with_the_same_attention_guess() -> None:
    def crops(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        corners = torch.randint(0, 161, (len(images), 4, 2))
        cut = [
            (image[:, r : r + 96, c : c + 96], label[r : r + 96, c : c + 96])
            for image, label, places in zip(images, labels, corners, strict=True)
            for r, c in places.tolist()
        ]
        return torch.stack([i for i, _ in cut]), torch.stack([k for _, k in cut])

    network = train("attention", 0, 200, view=crops)
    images, labels = batch(UNSEEN, (256, 256), 1)
    with torch.no_grad():
        scores = label_by_crops(network, images, 96, 32)
    right = (scores.argmax(dim=1) == labels)[labels == 0].float().mean()
    print(f"96-px crops, 67 % overlap: pair accuracy {pair_accuracy(scores, labels)}, land {right:.3f}")
    assert right > 0.95  # it has learnt what can be learnt
    assert pair_accuracy(scores, labels) == 0.5


@pytest.mark.slow
def test_convolutions_over_the_whole_scene_guess() -> None:
    network = train("none", 0, 200)
    images, labels = batch(UNSEEN, (256, 256), 1)
    with torch.no_grad():
        scores = network(images)
    keys = (scores.argmax(dim=1) == labels)[labels > 2].float().mean()
    print(f"convolutions, whole scenes: pair accuracy {pair_accuracy(scores, labels)}, keys {keys:.3f}")
    assert keys > 0.9
    assert pair_accuracy(scores, labels) == 0.5


@pytest.mark.slow
def test_attention_over_averaged_scenes_guesses() -> None:
    def averaged(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return F.avg_pool2d(images, DETAIL_PX), labels[:, 4::DETAIL_PX, 4::DETAIL_PX]

    network = train("attention", 0, 200, view=averaged)
    images, labels = batch(UNSEEN, (256, 256), 1)
    with torch.no_grad():
        scores = F.interpolate(network(averaged(images, labels)[0]), scale_factor=DETAIL_PX)
    print(f"whole scenes averaged by 8: pair accuracy {pair_accuracy(scores, labels)}")
    assert pair_accuracy(scores, labels) == 0.5


@pytest.mark.slow
def test_the_second_level_tells_attention_from_pooling() -> None:
    accuracy = {}
    for context in ("placed attention", "pooling"):
        network = train(context, 0, 500, size=(256, 352), keys=2)
        images, labels = batch(UNSEEN, (256, 352), 2)
        with torch.no_grad():
            accuracy[context] = pair_accuracy(network(images), labels)
    print(f"second level, pair accuracy: {accuracy}")
    assert accuracy["placed attention"] >= 0.99
    # Equal answers but for rounding, hence not exactly one half.
    assert abs(accuracy["pooling"] - 0.5) < 1e-3
