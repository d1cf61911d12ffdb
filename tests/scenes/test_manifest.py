import hashlib
import os
import re
import tomllib
from pathlib import Path

import pytest

from rsseglab.errors import UserError
from rsseglab.scenes import synthetic
from rsseglab.scenes.manifest import Layout, Manifest, load_manifest, manifest_names

NAMES = [
    "deepglobe", "dubai", "five_billion_pixels", "glh_water", "indian_pines", "inria", "loveda", "oam_buildings",
    "potsdam", "s2_clouds", "synthetic", "uavid", "vaihingen", "whu_ohs",
]  # fmt: skip

MINIMAL = """\
name = "mine"
title = "My town"
page = "https://example.org"
get = "Ask me."
bands = ["red", "green", "blue"]
ignore_values = [0]
traps = ["Small."]
classes = [
    { name = "water", value = 1, color = [0, 114, 178] },
    { name = "land", value = 2, color = [240, 228, 66] },
]

[layout]
image = "{id}_image.tif"
label = "{id}_label.tif"

[splits]
train = ["a", "b"]
test = ["c"]

[[files]]
path = "a_image.tif"
md5 = "0cc175b9c0f1b6a831c399e269772661"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_the_data_sets_are_those_of_the_papers_and_ours():
    assert manifest_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_manifest_parses_and_says_what_a_reader_needs(name):
    manifest = load_manifest(name)
    assert manifest.name == name
    assert manifest.traps and manifest.get and manifest.page
    assert len(manifest.classes) >= 2
    assert manifest.layout.label
    if manifest.layout.image_bands:
        assert len(manifest.layout.image_bands) == len(manifest.bands)
    for identifiers in manifest.splits.values():
        for one in identifiers:
            if "*" not in one:
                assert manifest.layout.fill(manifest.layout.image[0], one)
                assert manifest.layout.fill(manifest.layout.label, one)
    for one in manifest.sizes:
        assert one == "*" or any(one in split for split in manifest.splits.values())


def published(*splits: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(" ".join(sorted(split)) for split in splits).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("name", "counts", "digest"),
    [("deepglobe", (454, 207, 142), "0640f9c9edc5b323"), ("inria", (126, 27, 27), "425c1d871b558199")],
)
def test_the_published_lists_of_fctl(name, counts, digest):
    splits = [load_manifest(name).splits[split] for split in ("train", "val", "test")]
    assert tuple(map(len, splits)) == counts
    assert len({one for split in splits for one in split}) == sum(counts)
    # Known answer: the digest of GLNet's and FCtL's lists, computed from the lists themselves.
    assert published(*splits) == digest


def test_the_isprs_splits_cover_the_tiles():
    vaihingen, potsdam = load_manifest("vaihingen").splits, load_manifest("potsdam").splits
    assert [len(vaihingen[s]) for s in ("train", "val", "test", "crgnet/train", "crgnet/test")] == [15, 1, 17, 10, 5]
    assert len({*vaihingen["crgnet/train"], *vaihingen["crgnet/val"]}) == 11
    assert len({*vaihingen["train"], *vaihingen["val"], *vaihingen["test"]}) == 33
    assert set(vaihingen["dbfnet/train"]) == {*vaihingen["train"], *vaihingen["val"]}
    assert [len(potsdam[s]) for s in ("train", "val", "test", "dbfnet/train", "dbfnet/test")] == [22, 1, 14, 24, 14]
    assert set(potsdam["dbfnet/train"]) - {*potsdam["train"], *potsdam["val"]} == {"7_10"}
    assert len({*potsdam["dbfnet/train"], *potsdam["test"]}) == 38


def test_the_isprs_splits_are_geosegs():
    """As listed in independent public notes; GeoSeg itself ships no lists."""
    vaihingen, potsdam = load_manifest("vaihingen").splits, load_manifest("potsdam").splits
    assert vaihingen["test"] == tuple(map(str, (2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38)))
    assert vaihingen["train"] == tuple(map(str, (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 32, 34, 37)))
    assert vaihingen["val"] == ("30",) and potsdam["val"] == ("2_10",)
    rows = {2: (13, 14), 3: (13, 14), 4: (13, 14, 15), 5: (13, 14, 15), 6: (13, 14, 15), 7: (13,)}
    assert potsdam["test"] == tuple(f"{row}_{col}" for row, cols in rows.items() for col in cols)
    rows = {row: range(10, 13) for row in (3, 4, 5)} | {2: (11, 12), 6: range(7, 13), 7: (7, 8, 9, 11, 12)}
    assert set(potsdam["train"]) == {f"{row}_{col}" for row, cols in rows.items() for col in cols}


def test_dubai_keeps_overlapping_scenes_together():
    manifest = load_manifest("dubai")
    fixed = {name: its for name, its in manifest.splits.items() if "/" not in name}
    assert fixed == {"train": ("tile4", "tile7", "tile8"), "val": ("tile1", "tile3"), "test": ("tile2", "tile5")}
    for group in (("tile1", "tile3"), ("tile7", "tile8"), ("tile4", "tile8")):
        assert group in manifest.overlaps


def test_sums_are_those_that_came_with_the_data():
    lines = [
        f"{file.sha256}  ./{name}/{file.path}"
        for name in ("dubai", "indian_pines", "oam_buildings", "s2_clouds")
        for file in load_manifest(name).files
    ]
    # Known answer: the digest of the SHA256SUMS that the scenes came with; the file itself where it is at hand.
    assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16] == "78b846750f128330"
    listed = Path(os.environ.get("RSSEGLAB_DATA", ".")) / "SHA256SUMS"
    if listed.exists():
        assert sorted(lines) == sorted(listed.read_text().splitlines())


def test_the_synthetic_manifest_agrees_with_the_generator():
    manifest = load_manifest("synthetic")
    assert manifest.classes == synthetic.CLASSES
    assert manifest.ignore_values == synthetic.IGNORE_VALUES
    assert manifest.gsd_m == synthetic.GSD_M
    assert manifest.sizes == {name: (width, height) for name, (height, width, _) in synthetic.SCENES.items()}
    assert {one for split in manifest.splits.values() for one in split} == set(synthetic.SCENES)


def test_a_manifest_of_ones_own(tmp_path):
    manifest = load_manifest(write(tmp_path, MINIMAL))
    assert manifest.splits == {"train": ("a", "b"), "test": ("c",)}
    assert manifest.files[0].checksum == ("md5", "0cc175b9c0f1b6a831c399e269772661")
    assert (manifest.licence, manifest.gsd_m, manifest.label_encoding) == (None, None, "value")


REQUIRED = [key for key in tomllib.loads(MINIMAL) if key not in ("ignore_values", "files")]


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named(tmp_path, key):
    text = re.sub(rf"(?ms)^(\[{key}\]$.*?(?=^\[|\Z)|{key} = (\[$.*?^\]$|.*?$))", "", MINIMAL)
    assert key not in tomllib.loads(text)
    with pytest.raises(UserError, match=rf"mine\.toml: the key {key} is missing"):
        Manifest.load(write(tmp_path, text))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title = ", "titel = ", "the key title is missing"),
        ('title = "My town"', 'title = "My town"\nlicense = "x"', r"the key license is unknown \(did you mean licence"),
        ('"My town"', "7", r"the key title is wrong \(it has to be text"),
        ("value = 1,", 'value = "1",', r"the key classes\[0\]\.value is wrong"),
        ("value = 2,", "value = 1,", r"the key classes is wrong \(two have the same value"),
        ("[0, 114, 178]", "[0, 114, 278]", r"the key classes\[0\]\.color is wrong"),
        ("ignore_values = [0]", "ignore_values = [2]", r"the key ignore_values is wrong \(\[2\] are classes"),
        ('test = ["c"]', 'test = ["a"]', r"the key splits\.test is wrong \(a stands twice, here and in train"),
        ('test = ["c"]', 'test = "c"', r"the key splits is wrong \(it has to be a list of text"),
        ("772661", "77266", r"the key files\[0\]\.md5 is wrong \(it has to be 32 hexadecimal"),
        ('"a_image.tif"', '"../a_image.tif"', r"the key files\[0\]\.path is wrong \(.*inside the data set's folder"),
        ('"{id}_label.tif"', '"/etc/{id}"', r"the key layout\.label is wrong"),
        ("bands = ", 'unlabelled = ["val"]\nbands = ', r"the key unlabelled is wrong \(there is no split 'val'"),
        ("bands = ", 'overlaps = [["b", "c"]]\nbands = ', r"the key splits is wrong \(b, c overlap but lie in"),
        ("bands = ", 'label_encoding = "rgb"\nbands = ', r"the key label_encoding is wrong"),
        ("bands = ", "gsd_m = 0\nbands = ", r"the key gsd_m is wrong \(it has to be a positive number"),
        ("[splits]", "[sizes]\na = [3]\n[splits]", r"the key sizes is wrong \(each size has to be"),
        (
            "[splits]",
            "[parts]\na = { of = 'x', window = [0, 0, 3] }\n[splits]",
            r"the key parts is wrong \(each part has",
        ),
        (
            "[splits]",
            "[parts]\nb = { of = 'x', window = [0, 0, 3, 9] }\nc = { of = 'x', window = [2, 8, 3, 9] }\n[splits]",
            r"the key parts is wrong \(c and b overlap but lie in test and train",
        ),
        ("[splits]", "recode = { x = 1 }\n[splits]", r"the key layout\.recode is wrong"),
        ('"{id}_image.tif"', '"../{id}.tif"', r"the key layout\.image is wrong"),
        ('"{id}_image.tif"', "[]", r"the key layout\.image is wrong \(it names no file"),
        ('"{id}_image.tif"', '"{id"', r"the key layout\.image is wrong"),
        (
            '"{id}_label.tif"',
            '"{id.__class__}.tif"',
            r"the key layout\.label is wrong \({id.__class__} is no",
        ),
        ('"{id}_label.tif"', '"{foo}.tif"', r"the key layout\.label is wrong \(the image's pattern has no"),
        ('name = "', 'name = "../', r"the key name is wrong \(it has to be a plain word"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, old, new, message):
    assert old in MINIMAL
    with pytest.raises(UserError, match=rf"mine\.toml: {message}") as error:
        Manifest.load(write(tmp_path, MINIMAL.replace(old, new, 1)))
    assert "\n" not in str(error.value)


def test_a_syntax_error_is_named_with_its_line(tmp_path):
    with pytest.raises(UserError, match=r"mine\.toml is not valid TOML: .*line 3"):
        Manifest.load(write(tmp_path, MINIMAL.replace("page = ", "page ")))


def test_a_missing_manifest_and_an_unknown_name(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_manifest(tmp_path / "none.toml")
    with pytest.raises(UserError, match=r"there is no data set 'dubay' .*did you mean dubai"):
        load_manifest("dubay")
    with pytest.raises(UserError, match="no split 'validation'; its splits: train, val, test"):
        load_manifest("dubai").scenes("validation")


@pytest.mark.parametrize(
    ("pattern", "identifier", "path"),
    [
        ("{id}_image.tif", "a.b+c", "a.b+c_image.tif"),
        ("{part}/{area}/images_png/{name}.png", "Train/Urban/7", "Train/Urban/images_png/7.png"),
        ("{id}/{id}_RGB.tif", "x", "x/x_RGB.tif"),
    ],
)
def test_identifiers_and_paths_are_inverse(pattern, identifier, path):
    layout = Layout((pattern,), None)
    assert layout.fill(pattern, identifier) == path
    assert layout.identifier(path) == identifier
    assert layout.identifier(path + "x") is None
    assert layout.fill(pattern, identifier + "/more") is None


def test_a_star_stands_for_one_folder():
    layout = Layout(("data/*/{id}.jpg",), None)
    assert layout.identifier("data/training/7.jpg") == "7"
    assert layout.identifier("data/a/b/7.jpg") is None
