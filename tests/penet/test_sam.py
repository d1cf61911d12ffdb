"""Masks for clicks: MobileSAM against the reference implementation, caches, and the other sources."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rsseglab.errors import UserError
from rsseglab.penet.sam import Discs, SegmentAnything, StoredMasks, Superpixels, as_rgb
from rsseglab.penet.sam_network import WEIGHTS, build_sam, find_weights
from rsseglab.scenes import ArraySource, LabelClass, Scene, Window
from rsseglab.scenes.manifest import load_manifest

FOLDER = Path(os.environ.get("RSSEGLAB_WEIGHTS") or "none")
CLASSES = [LabelClass("a", 0, (0, 0, 255)), LabelClass("b", 1, (0, 255, 0))]
with_weights = pytest.mark.skipif(
    not (FOLDER / "mobile_sam.pt").is_file(),
    reason="MobileSAM's weights are not here; put mobile_sam.pt in a folder and name it in RSSEGLAB_WEIGHTS",
)
with_reference = pytest.mark.skipif(
    not (FOLDER / "mobile_sam_reference.npz").is_file() or not os.environ.get("RSSEGLAB_DATA"),
    reason="the reference's answers are not here; RSSEGLAB_WEIGHTS and RSSEGLAB_DATA name the folders they lie in",
)


def scene_of(seed=0, height=96, width=120, dtype=np.uint8):
    """Bright blocks on a dark ground."""
    draw = np.random.default_rng(seed)
    image = draw.integers(20, 60, (height, width, 3))
    image[20:50, 30:70] += 150
    image[60:90, 80:110, 1] += 150
    return Scene(ArraySource(image.astype(dtype)), None, CLASSES, name="s")


# --- MobileSAM ---


@pytest.fixture(scope="module")
def sam():
    return SegmentAnything(device="cpu")


@with_reference
@pytest.mark.parametrize(
    ("name", "data"), [("kampala_a", "oam_buildings"), ("dubai_tile5", "dubai"), ("zanzibar_b", "oam_buildings")]
)
def test_mobile_sam_equals_the_reference(sam, name, data):
    reference = np.load(FOLDER / "mobile_sam_reference.npz")
    manifest = load_manifest(data)
    identifier = name.removeprefix("dubai_")
    (scene,) = [s for split in manifest.splits for s in manifest.scenes(split) if s.name == identifier][:1]
    col, row, width, height = reference[f"{name}/window"]
    image = as_rgb(scene, Window(int(row), int(col), int(height), int(width)))
    embedding = sam._embedding(image)
    mean, std = reference[f"{name}/embedding_mean_std"]
    assert abs(embedding.mean() - mean) < 1e-5 and abs(embedding.std() - std) < 1e-5
    assert np.abs(embedding[0, :, ::4, ::4].numpy() - reference[f"{name}/embedding_16x16"]).max() < 1e-3
    for i in range(sum(key.startswith(f"{name}/") and key.endswith("/iou") for key in reference)):
        points, labels = reference[f"{name}/{i}/points"], reference[f"{name}/{i}/point_labels"]
        masks, expected, logits = sam.predict(image, points[None], labels[None])
        assert np.abs(expected[0] - reference[f"{name}/{i}/iou"]).max() < 1e-3
        assert np.abs(logits[0, :, ::2, ::2] - reference[f"{name}/{i}/low_res_logits"]).max() < 1e-3
        theirs = np.unpackbits(reference[f"{name}/{i}/masks"], axis=1)[:, : height * width]
        for ours, their in zip(masks[0], theirs.reshape(3, height, width).astype(bool), strict=True):
            assert (ours & their).sum() / (ours | their).sum() >= 0.99


@with_weights
def test_a_second_run_encodes_nothing(tmp_path):
    scene, window = scene_of(), Window(0, 0, 96, 120)
    clicks, others = np.array([[35.0, 50.0], [75.0, 95.0]]), [np.array([[75.0, 95.0]]), np.array([[35.0, 50.0]])]
    first = SegmentAnything(device="cpu", cache=tmp_path)
    found = first.propose(scene, window, clicks, others)
    first.propose(scene, window, clicks, others)
    assert first.encoded == 1
    again = SegmentAnything(device="cpu", cache=tmp_path)
    assert torch.equal(again._embedding(as_rgb(scene, window)), first._embedding(as_rgb(scene, window)))
    for ours, theirs in zip(again.propose(scene, window, clicks, others), found, strict=True):
        assert all(np.array_equal(a.mask, b.mask) and a.score == b.score for a, b in zip(ours, theirs, strict=True))
    assert again.encoded == 0
    again.propose(scene_of(1), window, clicks, others)
    assert again.encoded == 1  # other pixels, another embedding
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        SegmentAnything(device="cpu", cache=tmp_path).propose(scene, window, clicks, others)


@with_weights
def test_a_click_finds_its_block_and_prompts_do_not_depend_on_their_company(sam):
    scene, window = scene_of(), Window(0, 0, 96, 120)
    clicks = np.array([[35.5, 50.5], [75.5, 95.5], [5.5, 5.5]])
    others = [clicks[1:], clicks[[0, 2]], np.empty((0, 2))]
    together = sam.propose(scene, window, clicks, others)
    for i in range(3):
        (alone,) = sam.propose(scene, window, clicks[i : i + 1], others[i : i + 1])
        assert max(abs(a.score - b.score) for a, b in zip(alone, together[i], strict=True)) < 1e-4
    best = max(together[0], key=lambda p: p.score).mask
    block = np.zeros((96, 120), bool)
    block[20:50, 30:70] = True
    assert (best & block).sum() / (best | block).sum() > 0.85


def test_weights_that_are_missing_damaged_or_of_another_network_are_named(tmp_path):
    with pytest.raises(UserError, match="no network 'sam_vit_x'"):
        build_sam("sam_vit_x")
    with pytest.raises(UserError, match="no weights at"):
        build_sam("mobile_sam", tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"no weights")
    with pytest.raises(UserError, match="is no file of weights"):
        build_sam("mobile_sam", tmp_path / "bad.pt")
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="has no weights of mobile_sam"):
        build_sam("mobile_sam", tmp_path / "other.pt")


def test_weights_are_fetched_once_and_their_sum_is_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RSSEGLAB_WEIGHTS", raising=False)
    entry = WEIGHTS["mobile_sam"]
    with pytest.raises(UserError, match="can't be fetched"):
        monkeypatch.setitem(WEIGHTS, "mobile_sam", type(entry)(entry.file, entry.sha256, "file:///none"))
        find_weights("mobile_sam")
    monkeypatch.setattr(
        "rsseglab.penet.sam_network.fetch", lambda url, part, what: part.write_bytes(b"not the weights")
    )
    with pytest.raises(UserError, match="wrong sum"):
        find_weights("mobile_sam")
    folder = tmp_path / ".cache" / "rsseglab" / "weights"
    assert not list(folder.glob("*"))
    (folder / "mobile_sam.pt").write_bytes(b"there")
    assert find_weights("mobile_sam") == folder / "mobile_sam.pt"


# --- the others ---


def test_discs():
    (one,) = Discs(5).propose(scene_of(), Window(0, 0, 30, 40), np.array([[10.9, 20.2]]), [np.empty((0, 2))])
    (disc,) = one
    for r in range(30):
        for c in range(40):
            assert disc.mask[r, c] == ((r - 10) ** 2 + (c - 20) ** 2 <= 25)


def test_discs_end_where_another_class_is_nearer():
    clicks, others = np.array([[10.5, 10.5], [10.5, 20.5]]), [np.array([[10.5, 20.5]]), np.array([[10.5, 10.5]])]
    (a,), (b,) = Discs(9).propose(scene_of(), Window(0, 0, 30, 40), clicks, others)
    assert not (a.mask & b.mask).any() and a.mask[10, 14] and not a.mask[10, 15] and b.mask[10, 16]
    assert a.mask.sum() == b.mask.sum() < np.pi * 81


def test_superpixels_keep_to_edges():
    scene = scene_of()
    ((one,),) = Superpixels(400).propose(scene, Window(0, 0, 96, 120), np.array([[35.5, 50.5]]), [np.empty((0, 2))])
    block = np.zeros((96, 120), bool)
    block[20:50, 30:70] = True
    assert one.mask[35, 50] and 100 < one.mask.sum() < 1600 and (one.mask & block).sum() / one.mask.sum() > 0.95


def test_masks_from_disk(tmp_path):
    from made import make_scene, write_raster

    scene = make_scene(tmp_path)
    segments = np.zeros((scene.height, scene.width), np.uint16)
    segments[10:30, 40:60] = 7
    write_raster(tmp_path / "segments.tif", segments)
    source = StoredMasks(tmp_path / "segments.tif", scene)
    window = Window(5, 30, 50, 60)
    on, beside = source.propose(scene, window, np.array([[10.5, 15.5], [0.5, 0.5]]), [np.empty((0, 2))] * 2)
    assert len(on) == 1 and on[0].mask.sum() == 400 and not beside
    write_raster(tmp_path / "small.tif", segments[:50])
    with pytest.raises(UserError, match=r"small\.tif is"):
        StoredMasks(tmp_path / "small.tif", scene)
    write_raster(tmp_path / "float.tif", segments.astype(np.float32))
    with pytest.raises(UserError, match="segment numbers"):
        StoredMasks(tmp_path / "float.tif", scene)


def test_other_numbers_than_bytes_are_stretched():
    scene = scene_of(dtype=np.uint16)
    image = as_rgb(scene, Window(0, 0, 96, 120))
    assert image.dtype == np.uint8 and image.min() == 0 and image.max() == 255
    assert np.array_equal(
        as_rgb(scene_of(), Window(3, 4, 5, 6)), scene_of().read(Window(3, 4, 5, 6)).transpose(1, 2, 0)
    )
