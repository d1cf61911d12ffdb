"""Counts by block, and intervals: against a loop over draws, on made data whose true difference is known, bad input."""

import json

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from rsseglab.errors import UserError
from rsseglab.evaluation import (
    BlockCounts,
    Confusion,
    count_blocks,
    evaluate_scene,
    mean_iou_difference,
    mean_iou_interval,
)
from rsseglab.evaluation.bootstrap import smallest_detectable
from rsseglab.scenes.raster import ArraySource
from rsseglab.scenes.scene import IGNORE_INDEX, LabelClass, Scene
from rsseglab.training.records import portable

NAMES = ("water", "land", "road")
K = len(NAMES)


# --- Blocks ---


@pytest.fixture
def scene_and_prediction():
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, K, (9, 7)), np.ones((10, 10))).astype(np.uint8)
    prediction = np.where(rng.random(label.shape) < 0.8, label, rng.integers(0, K, label.shape)).astype(np.uint8)
    label[:32, :32] = IGNORE_INDEX  # a block without a label
    prediction[80:, :30] = IGNORE_INDEX
    classes = [LabelClass(name, i, (i, i, i)) for i, name in enumerate(NAMES)]
    grid = ArraySource(np.ones((*label.shape, 3), np.uint8))
    return Scene(grid, ArraySource(label), classes, [IGNORE_INDEX], name="scene"), prediction


def test_blocks_hold_the_confusion_of_each_piece(scene_and_prediction):
    scene, prediction = scene_and_prediction
    counted = count_blocks(prediction, scene, block_px=32)
    assert counted.counts.shape == (3 * 3, K, K + 1)
    assert counted.counts[0].sum() == 0
    piece = Confusion(NAMES)
    piece.update(prediction[32:64, 64:], np.asarray(scene.read_label())[32:64, 64:])
    np.testing.assert_array_equal(counted.counts[5], piece.matrix)  # second row, last column
    whole = evaluate_scene(prediction, scene).confusion
    np.testing.assert_array_equal(counted.confusion.matrix, whole.matrix)
    assert counted.confusion.mean_iou() == whole.mean_iou()


def test_blocks_survive_a_record(scene_and_prediction):
    scene, prediction = scene_and_prediction
    counted = count_blocks(prediction, scene, block_px=16)
    content = json.loads(json.dumps(portable(counted.to_json())))
    again = BlockCounts.from_json(content)
    np.testing.assert_array_equal(again.counts, counted.counts)
    assert again.counts.dtype == np.int64
    assert (again.scene, again.classes, again.block_px) == ("scene", NAMES, 16)
    for damage in (content["counts"][:-9], content["counts"][:20] + "AAAA" + content["counts"][24:], "?"):
        with pytest.raises(UserError, match=r"scene scene are damaged.*score the scene anew"):
            BlockCounts.from_json(content | {"counts": damage})
    with pytest.raises(UserError, match="damaged"):
        BlockCounts.from_json(content | {"classes": [*NAMES, "tree", "sky"]})


def test_a_record_may_cut_no_counts_as_if_they_were_a_path():
    for seed in range(50):  # plain base64 holds "/"
        counts = np.random.default_rng(seed).integers(0, 2**16, (4, K, K + 1))
        content = BlockCounts("scene", NAMES, 256, counts).to_json()
        assert portable(content) == content


def test_the_counts_of_a_large_scene_are_small():
    rng = np.random.default_rng(0)
    counts = np.zeros((468, 5, 6), np.int64)  # 6447 x 4438 px in blocks of 256
    for block in counts:
        there = rng.choice(5, 3, replace=False)
        block[np.ix_(there, there)] = rng.multinomial(256**2, rng.dirichlet(np.ones(9))).reshape(3, 3)
    assert len(json.dumps(BlockCounts("scene", NAMES, 256, counts).to_json())) < 25_000


def test_a_scene_without_labels_has_no_blocks(scene_and_prediction):
    scene, prediction = scene_and_prediction
    image = ArraySource(np.ones((*prediction.shape, 3), np.uint8))
    empty = Scene(image, ArraySource(np.full_like(prediction, IGNORE_INDEX)), scene.classes, [IGNORE_INDEX])
    with pytest.raises(UserError, match="no labelled pixel"):
        count_blocks(prediction, empty)
    with pytest.raises(UserError, match="block is 0 px"):
        count_blocks(prediction, scene, block_px=0)


# --- Intervals ---


def made(rng, seeds=3, blocks=(12, 7), gain=0.3, place_sd=0.6, seed_sd=0.15, both_sd=0.2):
    """Two methods: runs, one a seed, of scenes. The first is right with log-odds higher by ``gain``.

    Place, seed, and both together move the log-odds.
    """
    labels = [np.array([rng.multinomial(1000, p) for p in rng.dirichlet([2, 1, 0.5], size=n)]) for n in blocks]
    places = [rng.normal(0, place_sd, (n, 1)) for n in blocks]
    methods = []
    for shift in (gain, 0.0):
        both = [rng.normal(0, both_sd, (n, 1)) for n in blocks]
        runs = []
        for luck in rng.normal(0, seed_sd, seeds):
            odds = [
                1 + shift + luck + place + more + np.array([0.5, 0, -0.5])
                for place, more in zip(places, both, strict=True)
            ]
            runs.append([scene(i, label, odd) for i, (label, odd) in enumerate(zip(labels, odds, strict=True))])
        methods.append(runs)
    return methods


def scene(i, label, odds):
    right = np.rint(label / (1 + np.exp(-odds))).astype(np.int64)  # (blocks, K)
    counts = np.zeros((len(label), K, K + 1), np.int64)
    for k in range(K):
        counts[:, k, k] = right[:, k]
        counts[:, k, (k + 1) % K] = label[:, k] - right[:, k]
    return BlockCounts(f"scene{i}", NAMES, 256, counts)


def without(k, part, first_block=0):
    """Take class k out of blocks: its labels are gone, what was called so has no class."""
    blocks = part.counts[first_block:]
    blocks[:, k] = 0
    blocks[:, :, K] += blocks[:, :, k]
    blocks[:, :, k] = 0


def slow_difference(first, second, draws, seed, classes=None):
    """One draw after the other, through `Confusion`."""
    rng = np.random.default_rng(seed)
    S = len(first)
    labelled = [np.flatnonzero(part.counts.sum(axis=(1, 2))) for part in first[0]]
    places = [
        rng.multinomial(len(at) - 1, np.full(len(at), 1 / len(at)), size=draws) if len(at) > 1 else np.ones((draws, 1))
        for at in labelled
    ]
    seeds = rng.multinomial(S, np.full(S, 1 / S), size=draws)
    stretch = np.sqrt(S / (S - 1)) * student.ppf(0.975, S - 1) / norm.ppf(0.975) if S > 1 else 0

    def score(run, times=None):
        matrix = np.zeros((K, K + 1))
        for i, part in enumerate(run):
            n = len(labelled[i])
            for b, block in enumerate(labelled[i]):
                weight = 1 if times is None else times[i][b] * (n / (n - 1) if n > 1 else 1)
                matrix += weight * part.counts[block]
        # Confusion is of whole counts; 1e6 times as many have the same IoU.
        return Confusion(NAMES, np.rint(1e6 * matrix).astype(np.int64)).mean_iou(classes)

    value = np.mean([score(a) - score(b) for a, b in zip(first, second, strict=True)])
    drawn = []
    for d in range(draws):
        times = [place[d] for place in places]
        each = np.array([score(a, times) - score(b, times) for a, b in zip(first, second, strict=True)])
        again = np.repeat(each, seeds[d])
        drawn.append(each.mean() + stretch * (again.mean() - each.mean()))
    return value, *np.quantile(drawn, [0.025, 0.975]), np.std(drawn, ddof=1)


@pytest.mark.parametrize(("seeds", "blocks"), [(3, (12, 7)), (1, (6,)), (2, (5, 1))])
def test_equals_a_loop_over_draws(seeds, blocks):
    first, second = made(np.random.default_rng(1), seeds, blocks)
    for runs in (first, second):  # a class that many draws do not hold, and a block without a label
        for run in runs:
            without(2, run[0], 1)
            for part in run[1:]:
                without(2, part)
            run[0].counts[2] = 0
    for classes in (None, ("road", "land")):
        fast = mean_iou_difference(first, second, draws=150, seed=4, classes=classes)
        slow = slow_difference(first, second, 150, 4, classes)
        np.testing.assert_allclose((fast.value, fast.low, fast.high, fast.standard_error), slow, atol=1e-7)
        assert (fast.seeds, fast.blocks) == (seeds, sum(blocks) - 1)
        assert fast.low < fast.value < fast.high


def test_identical_predictions_differ_by_nothing():
    first, _ = made(np.random.default_rng(2))
    same = mean_iou_difference(first, first)
    assert (same.value, same.low, same.high, same.standard_error, same.smallest_detectable) == (0, 0, 0, 0, 0)


def test_a_difference_has_the_opposite_sign_the_other_way_round():
    first, second = made(np.random.default_rng(2))
    there, back = mean_iou_difference(first, second), mean_iou_difference(second, first)
    np.testing.assert_allclose((there.value, there.low, there.high), (-back.value, -back.high, -back.low))


def test_pairing_makes_the_interval_of_the_difference_narrow():
    first, second = made(np.random.default_rng(3), place_sd=1.5, seed_sd=0.01, both_sd=0.01)
    one, other, both = mean_iou_interval(first), mean_iou_interval(second), mean_iou_difference(first, second)
    assert both.value == pytest.approx(one.value - other.value)
    assert both.high - both.low < 0.3 * (one.high - one.low)
    assert one.low < one.value < one.high


@pytest.mark.parametrize(
    ("seeds", "spread"),
    [
        (3, {"seed_sd": 0.4, "both_sd": 0.05}),  # seeds decide
        (3, {"seed_sd": 0.02, "both_sd": 0.6}),  # places decide
        (5, {"seed_sd": 0.15, "both_sd": 0.6}),
    ],
)
def test_intervals_cover_the_true_difference(seeds, spread):
    """The truth: many seeds on many places."""
    truth = np.mean(
        [mean_iou_difference(*made(np.random.default_rng(10**6 + i), 60, (1500,), **spread), draws=100).value
         for i in range(8)]
    )  # fmt: skip
    covered = []
    for i in range(300):
        estimate = mean_iou_difference(*made(np.random.default_rng(i), seeds, (30, 20), **spread), draws=600, seed=i)
        covered.append(estimate.low <= truth <= estimate.high)
    assert 0.9 <= np.mean(covered) <= 0.99


def test_the_smallest_detectable_effect_is_found_four_times_out_of_five():
    spread = {"seed_sd": 0.02, "both_sd": 0.6}

    def estimates(gain, n):
        for i in range(n):
            yield mean_iou_difference(*made(np.random.default_rng(i), 3, (30, 20), gain, **spread), draws=600, seed=i)

    smallest = np.mean([e.smallest_detectable for e in estimates(0.35, 60)])
    tried = list(estimates(0.35, 250))
    gain = 0.35 * smallest / np.mean([e.value for e in tried])  # nearly linear
    found = [e.low > 0 for e in estimates(gain, 250)]
    assert 0.7 < np.mean(found) < 0.9
    assert smallest_detectable(1.0) == pytest.approx(1.959964 + 0.841621, abs=1e-6)


def test_wrong_input_is_named_with_cause_and_remedy():
    first, second = made(np.random.default_rng(0))

    def refused(match, a, b, **options):
        with pytest.raises(UserError, match=match) as error:
            mean_iou_difference(a, b, **options)
        assert "\n" not in str(error.value)

    refused("3 and 2 seeds are no pairs", first, second[:2])
    refused("no block counts", [], [])
    refused("differ in scenes", first, [run[:1] for run in second])
    refused("differ in scenes", first, [run[::-1] for run in second])
    other = made(np.random.default_rng(9))[0]
    refused("differ in the labels of scene scene0", first, other)
    refused(r"no classes \['sea'\]; choose from water", first, second, classes=["sea"])
    refused("10 draws give no interval", first, second, draws=10)
    few = [[BlockCounts("s", NAMES, 256, run[0].counts[:1])] for run in first]
    refused("no scene has two labelled blocks", few, few)
    for run in first:
        for part in run:
            without(2, part)
    refused("none of the classes to average", first, first, classes=["road"])
