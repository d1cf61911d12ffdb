"""Each data set is read from a tiny tree in its published layout, made here; torchgeo's own samples are the twin."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from rsseglab.errors import UserError
from rsseglab.scenes import IGNORE_INDEX, Scene, Window, readers
from rsseglab.scenes.manifest import load_manifest

HEIGHT, WIDTH = 6, 8


def pixels(seed: int, bands: int = 3, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (bands, HEIGHT, WIDTH)).astype(dtype)


def save(path: Path, array: np.ndarray, **profile) -> None:
    """A raster of (bands, height, width): PNG by PIL, the rest by rasterio."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0)).save(path)
        return
    count, height, width = array.shape
    driver = {"driver": "JPEG", "quality": 100} if path.suffix == ".jpg" else {"driver": "GTiff"}
    with rasterio.open(
        path, "w", count=count, height=height, width=width, dtype=array.dtype, **driver, **profile
    ) as file:
        file.write(array)


def values(codes: list[int], seed: int = 0) -> np.ndarray:
    """A label (1, height, width) in which each code occurs."""
    label = np.random.default_rng(seed).choice(codes, HEIGHT * WIDTH)
    label[: len(codes)] = codes
    return label.reshape(1, HEIGHT, WIDTH).astype(np.uint8)


def painted(name: str, indices: np.ndarray) -> np.ndarray:
    """The colours (3, height, width) of class indices (1, height, width)."""
    colors = np.array([c.color for c in load_manifest(name).classes], np.uint8)
    return colors[indices[0]].transpose(2, 0, 1)


def make(name: str, root: Path, identifier: str, seed: int = 0, bands: int = 3, label: bool = True) -> np.ndarray:
    """Write one scene the way the source publishes it; returns the class indices expected."""
    classes = len(load_manifest(name).classes)
    index = values(list(range(classes)), seed)
    if name == "loveda":
        part, area, number = identifier.split("/")
        save(root / part / area / "images_png" / f"{number}.png", pixels(seed))
        written = index + 1
        written[0, -1, -1] = 0
        if label:
            save(root / part / area / "masks_png" / f"{number}.png", written)
        return np.where(written == 0, IGNORE_INDEX, index)[0]
    if name == "vaihingen":
        save(root / "top" / f"top_mosaic_09cm_area{identifier}.tif", pixels(seed))
        save(root / f"top_mosaic_09cm_area{identifier}.tif", painted(name, index))
    elif name == "potsdam":
        save(root / "4_Ortho_RGBIR" / f"top_potsdam_{identifier}_RGBIR.tif", pixels(seed, 4))
        save(root / f"top_potsdam_{identifier}_label.tif", painted(name, index))
    elif name == "deepglobe":
        colors = painted(name, index)
        colors[:, -1, -1] = 0  # unknown
        part = "training_data" if seed % 2 else "test_data"
        save(root / "data" / part / "images" / f"{identifier}_sat.jpg", pixels(seed))
        save(root / "data" / part / "masks" / f"{identifier}_mask.png", colors)
        index[0, -1, -1] = IGNORE_INDEX
    elif name == "inria":
        folder = root / "AerialImageDataset" / "train"
        place = {"crs": "EPSG:26914", "transform": rasterio.transform.from_origin(6e5, 3e6, 0.3, 0.3)}
        save(folder / "images" / f"{identifier}.tif", pixels(seed), **place)
        save(folder / "gt" / f"{identifier}.tif", index * 255, **place)
    elif name == "glh_water":
        part, stem = identifier.split("/")
        save(root / part / "img" / f"{stem}.jpg", pixels(seed))
        save(root / part / "label" / f"{stem}.png", index * 255)
    elif name == "five_billion_pixels":
        save(root / "Image__8bit_NirRGB" / f"{identifier}.tif", pixels(seed, 4))
        index[0, -1, -1] = IGNORE_INDEX
        save(root / "Annotation__index" / f"{identifier}_24label.png", np.where(index == 255, 0, index + 1))
    elif name == "whu_ohs":
        part, stem = identifier.split("/")
        save(root / part / "image" / f"{stem}.tif", pixels(seed, 32, "int16"))
        index[0, -1, -1] = IGNORE_INDEX
        save(root / part / "label" / f"{stem}.tif", np.where(index == 255, 0, index + 1).astype(np.uint8))
    elif name == "uavid":
        part, sequence, frame = identifier.split("/")
        save(root / part / sequence / "Images" / f"{frame}.png", pixels(seed))
        if label:
            save(root / part / sequence / "Labels" / f"{frame}.png", painted(name, index))
    return index[0]


TORCHGEO = {
    "loveda": ["Train/Urban/1366", "Train/Rural/0", "Val/Urban/3000", "Val/Rural/2600"],
    "vaihingen": ["1", "30", "2"],
    "potsdam": ["2_11", "2_10", "2_13", "7_10"],
    "deepglobe": ["100694", "102122", "10452"],
    "inria": ["vienna27", "kitsap16", "austin27", "vienna3"],
}
FOLDERS = {
    "glh_water": ["train/0001", "val/0002", "test/0003"],
    "five_billion_pixels": ["GF2_PMS1__L1A0000564539-MSS1", "GF2_PMS2__L1A0001378501-MSS2"],
    "whu_ohs": ["tr/O1_0001", "val/S1_0002", "ts/T8_0100"],
    "uavid": ["uavid_train/seq1/000000", "uavid_val/seq16/000100"],
}


@pytest.mark.parametrize(("name", "identifiers"), (TORCHGEO | FOLDERS).items())
def test_scenes_of_the_published_layout(name, identifiers, tmp_path):
    manifest = load_manifest(name)
    expected = {one: make(name, tmp_path, one, seed) for seed, one in enumerate(identifiers)}
    for seed, (one, index) in enumerate(expected.items()):
        scene = manifest.scene(one, tmp_path)
        assert (scene.name, scene.height, scene.width, scene.bands) == (one, HEIGHT, WIDTH, manifest.bands)
        assert (scene.classes, scene.gsd_m) == (manifest.classes, manifest.gsd_m)
        np.testing.assert_array_equal(scene.read_label(), index)
        if name not in ("deepglobe", "glh_water"):  # JPEG changes pixels
            raw = pixels(seed, {"potsdam": 4, "five_billion_pixels": 4, "whu_ohs": 32}.get(name, 3))
            wanted = {"potsdam": raw[:3], "five_billion_pixels": raw[1:]}.get(name, raw)
            np.testing.assert_array_equal(scene.read(), wanted)
        window = Window(-1, 2, 4, 9)
        padded = np.zeros((scene.count, 4, 9), scene.dtype)
        padded[:, 1:, :6] = scene.read()[:, :3, 2:]
        np.testing.assert_array_equal(scene.read(window), padded)
    assert scene.dtype == (np.int16 if name == "whu_ohs" else np.uint8)


@pytest.mark.parametrize(("name", "identifiers"), TORCHGEO.items())
def test_torchgeo_gives_the_same_sample(name, identifiers, tmp_path):
    manifest = load_manifest(name)
    for seed, one in enumerate(identifiers):
        make(name, tmp_path, one, seed)
    folder = readers.TorchgeoFolder(manifest, tmp_path)
    assert sorted(folder.identifiers()) == sorted(identifiers)
    for one in identifiers:
        sample = folder._samples[one]
        twin = sample.dataset[sample.index]
        scene = folder.scene(one)
        np.testing.assert_array_equal(scene.read(), twin["image"].numpy()[: scene.count])
        mask, index = twin["mask"].numpy(), scene.read_label()
        ignored = np.isin(mask, manifest.ignore_values)
        np.testing.assert_array_equal(index == IGNORE_INDEX, ignored)
        codes = np.array([c.value for c in manifest.classes])
        np.testing.assert_array_equal(codes[index[~ignored]], mask[~ignored])


def test_scenes_of_a_split_come_in_the_manifests_order(tmp_path):
    for seed, one in enumerate(("top", "1", "5", "3", "30")):
        make("vaihingen", tmp_path, one, seed)
    manifest = load_manifest("vaihingen")
    assert [scene.name for scene in manifest.scenes("val", tmp_path)] == ["30"]
    with pytest.raises(UserError, match="scene 7 of vaihingen is not in"):
        manifest.scenes("train", tmp_path)


def test_stars_find_what_lies_on_disk(tmp_path):
    for seed, one in enumerate(TORCHGEO["loveda"]):
        make("loveda", tmp_path, one, seed)
    for area in ("Urban", "Rural"):
        make("loveda", tmp_path, f"Test/{area}/5000", 7, label=False)
    manifest = load_manifest("loveda")
    assert manifest.identifiers("train", tmp_path) == ["Train/Rural/0", "Train/Urban/1366"]
    assert [scene.has_label for scene in manifest.scenes("train", tmp_path)] == [True, True]
    assert [scene.has_label for scene in manifest.scenes("test", tmp_path)] == [False, False]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no scene of uavid's split val \(uavid_val/\*\) lies in"):
        load_manifest("uavid").scenes("val", tmp_path / "empty")


def test_a_part_of_a_torchgeo_data_set_is_enough(tmp_path):
    for area in ("Urban", "Rural"):
        make("loveda", tmp_path, f"Val/{area}/3000", 1)
    assert len(load_manifest("loveda").scenes("val", tmp_path)) == 2
    with pytest.raises(UserError, match=r"no scene of loveda's split train \(Train/\*\) lies in"):
        load_manifest("loveda").scenes("train", tmp_path)


def test_uavids_hidden_labels(tmp_path):
    make("uavid", tmp_path, "uavid_test/seq21/000000", label=False)
    make("uavid", tmp_path, "uavid_val/seq16/000000", label=False)
    manifest = load_manifest("uavid")
    assert not manifest.scene("uavid_test/seq21/000000", tmp_path).has_label
    # A label that should be there is no hidden one.
    with pytest.raises(UserError, match=r"Labels/000000\.png does not exist"):
        manifest.scene("uavid_val/seq16/000000", tmp_path)
    assert [scene.name for scene in manifest.scenes("rest/test", tmp_path)] == ["uavid_test/seq21/000000"]


def test_a_lost_inria_label_is_noticed(tmp_path):
    for seed, one in enumerate(("austin1", "austin2", "austin3")):
        make("inria", tmp_path, one, seed)
    (tmp_path / "AerialImageDataset/train/gt/austin1.tif").unlink()
    with pytest.raises(UserError, match=r"pairs .*austin1\.tif with austin2\.tif: a label is missing"):
        load_manifest("inria").scene("austin2", tmp_path)


def test_inrias_georeference_survives_torchgeo(tmp_path):
    make("inria", tmp_path, "vienna3")
    scene = load_manifest("inria").scene("vienna3", tmp_path)
    assert scene.crs.to_epsg() == 26914
    assert scene.transform.a == pytest.approx(0.3)


@pytest.mark.parametrize("name", ["loveda", "uavid"])
def test_damaged_files_are_named(name, tmp_path):
    identifier = (TORCHGEO | FOLDERS)[name][0]
    for one in (TORCHGEO | FOLDERS)[name]:
        make(name, tmp_path, one)
    pattern = load_manifest(name).layout
    path = tmp_path / str(pattern.fill(pattern.label or "", identifier))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"\.png (or its label cannot be read|is not a raster|is damaged)"):
        load_manifest(name).scene(identifier, tmp_path).read_label()


def test_a_label_of_another_size_is_named(tmp_path):
    make("vaihingen", tmp_path, "1")
    save(tmp_path / "top_mosaic_09cm_area1.tif", np.zeros((3, HEIGHT, WIDTH + 1), np.uint8))
    with pytest.raises(UserError, match=r"area1\.tif has another size than"):
        load_manifest("vaihingen").scene("1", tmp_path).read_label()


def test_no_data_and_unknown_scenes(tmp_path):
    with pytest.raises(UserError, match=r"torchgeo's Vaihingen2D finds no data in .*rsseglab data get vaihingen"):
        load_manifest("vaihingen").scene("1", tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        load_manifest("vaihingen").scene("1", tmp_path / "none")
    make("vaihingen", tmp_path, "1")
    with pytest.raises(UserError, match=r"vaihingen has no scene '11x'|did you mean"):
        load_manifest("vaihingen").scene("11x", tmp_path)
    with pytest.raises(UserError, match=r"dubai has no scene 'tile6' \(did you mean tile"):
        load_manifest("dubai").scene("tile6", tmp_path)
    with pytest.raises(UserError, match=r"tile5_image\.tif does not exist"):
        load_manifest("dubai").scene("tile5", tmp_path)


def test_a_damaged_archive_is_no_traceback(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"PK not a zip")
    with pytest.raises(UserError, match=r"torchgeo cannot read .*rsseglab data verify deepglobe"):
        load_manifest("deepglobe").scene("10452", tmp_path)


def test_decoded_samples_are_kept_while_there_is_room(tmp_path, monkeypatch):
    readers._decoded.clear()
    for seed, one in enumerate(TORCHGEO["vaihingen"]):
        make("vaihingen", tmp_path, one, seed)
    folder = readers.TorchgeoFolder(load_manifest("vaihingen"), tmp_path)
    scenes = [folder.scene(one) for one in TORCHGEO["vaihingen"]]
    read: list[int] = []
    for sample in folder._samples.values():
        decode = sample._decode
        monkeypatch.setattr(sample, "_decode", lambda decode=decode, i=sample.index: (read.append(i), decode())[1])
    for scene in scenes:
        scene.read(Window(0, 0, 2, 2))
        scene.read_label()
    assert len(read) == 3  # image and label of a scene share one decoding
    one_mib = 4 * HEIGHT * WIDTH / 2**20
    monkeypatch.setattr(readers, "CACHE_MIB", 2.5 * one_mib)
    scenes[2].read()
    assert len(readers._decoded) == 2  # the oldest has gone
    scenes[1].read()  # now the third is the oldest
    scenes[0].read()
    assert len(read) == 4
    scenes[1].read()
    assert len(read) == 4
    scenes[2].read()
    assert len(read) == 5


def test_a_torchgeo_scene_travels_to_worker_processes(tmp_path):
    expected = make("vaihingen", tmp_path, "1")
    scene = load_manifest("vaihingen").scene("1", tmp_path)
    again: Scene = pickle.loads(pickle.dumps(scene))
    np.testing.assert_array_equal(again.read_label(), expected)


def test_indian_pines_and_bands_in_files(tmp_path):
    cube, truth = np.arange(4 * 5 * 200, dtype=np.uint16).reshape(4, 5, 200), np.arange(20).reshape(4, 5) % 17
    np.save(tmp_path / "Indian_pines_corrected.npy", np.asfortranarray(cube))
    np.save(tmp_path / "Indian_pines_gt.npy", truth.astype(np.uint8))
    (scene,) = load_manifest("indian_pines").scenes("all", tmp_path)
    np.testing.assert_array_equal(scene.read(), cube.transpose(2, 0, 1))
    np.testing.assert_array_equal(scene.read_label(), np.where(truth == 0, IGNORE_INDEX, truth - 1))

    for i, band in enumerate(("B02", "B03", "B04", "B08")):
        save(tmp_path / "adwp" / f"{band}.tif", pixels(i, 1, "uint16") + 1, nodata=0)
    save(tmp_path / "adwp" / "label.tif", values([0, 1]), nodata=255)
    (scene,) = load_manifest("s2_clouds").scenes("all", tmp_path)
    np.testing.assert_array_equal(scene.read()[2], pixels(2, 1, "uint16")[0] + 1)
    np.testing.assert_array_equal(scene.read_label(), values([0, 1])[0])


def test_five_billion_pixels_needs_its_bands(tmp_path):
    make("five_billion_pixels", tmp_path, "a")
    save(tmp_path / "Image__8bit_NirRGB" / "a.tif", pixels(0, 3))
    with pytest.raises(UserError, match=r"a\.tif has 3 bands, not the bands \(2, 3, 4\)"):
        load_manifest("five_billion_pixels").scene("a", tmp_path)
