"""Run records: what is written is read back, whole or not at all, strict, checked, and the same on any machine."""

import json
import os
import platform
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from rsseglab.errors import UserError
from rsseglab.training import records
from rsseglab.training.records import SCHEMA, RunRecord, portable

HARDWARE = {"cpu": "x", "cores": 2, "memory_mib": 1, "accelerator": None, "accelerator_memory_mib": None}


def make(**changes):
    values = {
        "command": ["rsseglab", "train", "--data", "dubai"],
        "configuration": {"lr": 1e-3, "encoder": "resnet18", "bands": (1, 2, 3)},
        "metrics": {"pooled": {"mean_iou": np.float32(0.5), "iou": {"road": float("nan")}}, "scenes": {"2": {}}},
        "seeds": [0],
        "minutes": 1.5,
        "hardware": HARDWARE,
    }
    return RunRecord(**(values | changes))


def test_what_is_written_is_read_back(tmp_path):
    record, path = make(), tmp_path / "new" / "record.json"
    record.write(path)
    assert RunRecord.read(path) == record
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]
    content = json.loads(path.read_text())
    assert content["configuration"]["bands"] == [1, 2, 3]
    jsonschema.validate(content, SCHEMA)


def test_this_machine_fits_the_schema_and_is_not_named(tmp_path):
    path = tmp_path / "record.json"
    RunRecord(["rsseglab"], {}, {"pooled": {}, "scenes": {}}, [0], 0.1).write(path)
    content = json.loads(path.read_text())
    jsonschema.validate(content, SCHEMA)
    assert 1 <= content["hardware"]["cores"] <= os.cpu_count()
    assert {"python", "rsseglab", "torch", "torchgeo"} <= set(content["packages"])
    assert f'"{platform.node()}"' not in path.read_text()
    assert not re.search(r'"[/~]', path.read_text())


def test_nan_is_null(tmp_path):
    path = tmp_path / "record.json"
    pooled = {"a": float("nan"), "b": np.array([1.0, np.inf]), "c": np.float64("nan"), "d": np.int64(3)}
    make(metrics={"pooled": pooled, "scenes": {}}).write(path)
    assert "NaN" not in path.read_text()
    assert RunRecord.read(path).metrics["pooled"] == {"a": None, "b": [1.0, None], "c": None, "d": 3}


def test_the_hash_is_of_the_content_not_of_its_order_or_place():
    one = make(configuration={"lr": 0.1, "steps": 5, "out": Path("/somewhere/run1")})
    same = make(configuration={"steps": 5, "out": "/elsewhere/run1", "lr": 0.1})
    other = make(configuration={"lr": 0.1, "steps": 6, "out": "run1"})
    assert one.configuration_sha256 == same.configuration_sha256 != other.configuration_sha256
    # Known answer: sha256 of {"a":1}
    known = "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    assert make(configuration={"a": 1}).configuration_sha256 == known


def test_what_is_edited_by_hand_is_refused(tmp_path):
    """Any key: a number, a minute, the machine. A record that is older than the hash of its content has none."""
    path = tmp_path / "record.json"
    make().write(path)
    content = json.loads(path.read_text())
    RunRecord.read(path)
    better = {"pooled": {"mean_iou": 0.9}, "scenes": {}}
    for edited in ({"metrics": better}, {"minutes": 1.4}, {"seeds": [1]}, {"git_commit": None, "command": "rsseglab"}):
        path.write_text(json.dumps(content | edited))
        with pytest.raises(UserError, match=rf"^{re.escape(str(path))} was edited after it was written"):
            RunRecord.read(path)
    path.write_text(json.dumps(dict(reversed(content.items()))))  # another order is the same content
    RunRecord.read(path)
    del content["content_sha256"]
    path.write_text(json.dumps(content | {"metrics": better}))
    assert RunRecord.read(path).metrics == better


def test_a_failed_write_leaves_the_old_record_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    make(minutes=1.0).write(path)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, "fsync", full)
    with pytest.raises(UserError, match=r"record\.json cannot be written \(No space left on device\); free some"):
        make(minutes=2.0).write(path)
    assert RunRecord.read(path).minutes == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]

    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(records.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(minutes=3.0).write(path)
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


WRONG = {
    "key 'minutes' is -1": {"minutes": -1},
    "key 'minutes' is \"long\"; it must be number": {"minutes": "long"},
    "key 'minutes' is true": {"minutes": True},
    r"key 'seeds\[1\]' is 0.5; it must be integer": {"seeds": [0, 0.5]},
    "key 'metrics' has no 'pooled'": {"metrics": {"scenes": {}}},
    "key 'metrics.scenes.2' is 0.5; it must be object": {"metrics": {"pooled": {}, "scenes": {"2": 0.5}}},
    "key 'metrics' has an unknown 'mean'": {"metrics": {"pooled": {}, "scenes": {}, "mean": 1}},
    "key 'hardware.cores' is 0; it must be at least 1": {"hardware": HARDWARE | {"cores": 0}},
    "key 'hardware.memory_mib' is \"1 GiB\"; it must be integer or null": {
        "hardware": HARDWARE | {"memory_mib": "1 GiB"}
    },
    "key 'packages.rsseglab' is 1": {"packages": {"python": "3", "rsseglab": 1}},
    "key 'schema_version' is 2, not 1": {"schema_version": 2},
    "key 'schema_version' is true": {"schema_version": True},
    "key 'created' is 'yesterday'": {"created": "yesterday"},
    "key 'git_commit' is 'main'": {"git_commit": "main"},
    "it has an unknown 'host'": {"host": "me"},
    "key 'configuration' is not the one that was run": {"configuration": {"lr": 0.5}},
}


@pytest.mark.parametrize("message", WRONG)
def test_reading_names_file_and_key(tmp_path, message):
    content = make().to_json() | WRONG[message]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: {message}") as error:
        RunRecord.read(path)
    assert "\n" not in str(error.value)
    if "not the one that was run" not in message:  # the twin knows no hash
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(content, SCHEMA)


@pytest.mark.parametrize("key", SCHEMA["required"])
def test_a_missing_key_is_named(tmp_path, key):
    content = make().to_json()
    del content[key]
    (tmp_path / "record.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"it has no '{key}'"):
        RunRecord.read(tmp_path / "record.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"minutes": 1,\n', "is no JSON: .* in line 3"),
        ('{"minutes": NaN}', "no strict JSON: it holds NaN"),
        ('{"minutes": -Infinity}', "no strict JSON: it holds -Infinity"),
        ("[]", r"it is \[\]; it must be object"),
    ],
)
def test_files_that_are_no_record(tmp_path, text, message):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        RunRecord.read(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        RunRecord.read(tmp_path / "missing.json")
    (tmp_path / "image.json").write_bytes(b"\x89PNG\xff")
    with pytest.raises(UserError, match="no UTF-8"):
        RunRecord.read(tmp_path / "image.json")


def test_a_wrong_record_is_not_written(tmp_path):
    with pytest.raises(UserError, match="key 'metrics' has no 'pooled'"):
        make(metrics={}).write(tmp_path / "record.json")
    with pytest.raises(UserError, match="cannot hold a module"):
        make(configuration={"a": json})
    assert not list(tmp_path.iterdir())


PATHS = {
    "/disk/ann/data/dubai": "dubai",
    "/disk/ann lee/my data/x.tif": "x.tif",
    "--out=/disk/ann lee/x.tif": "--out=x.tif",
    "~/x.tif": "x.tif",
    "~ann/x.tif": "x.tif",
    "C:\\disk\\ann\\x.tif": "x.tif",
    "D:/data/x.tif": "x.tif",
    "file:///disk/ann/x.tif": "x.tif",
    "weights from /disk/ann/w.pth, then '/mnt/b/c.pth'": "weights from w.pth, then 'c.pth'",
    "from file:///disk/ann/w.pth on": "from w.pth on",
    "../shared/data/x.tif": "../shared/data/x.tif",
    "runs/1/x.tif": "runs/1/x.tif",
    "https://example.org/a/b": "https://example.org/a/b",
    "IoU and/or F1": "IoU and/or F1",
}


@pytest.mark.parametrize("text", PATHS)
def test_paths_of_this_machine_are_cut(text):
    assert portable(text) == PATHS[text]
    assert portable({"a": [text]}) == {"a": [PATHS[text]]}
    assert portable(PATHS[text]) == PATHS[text]  # reading a record changes nothing


def test_paths_below_the_working_directory_are_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert portable(tmp_path / "a" / "b.tif") == "a/b.tif"
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "ann")
    assert portable(tmp_path / "ann" / "b.tif") == "b.tif"  # not ann/b.tif
    assert portable(str(tmp_path / "ann")) == "~"


def test_commands_keep_their_arguments(tmp_path):
    command = ["/opt/env/bin/rsseglab", "predict", "/disk/ann lee/x.tif", "--note", "two words"]
    record = make(command=command)
    assert record.command == "rsseglab predict x.tif --note 'two words'"
    assert replace(record, minutes=3).command == record.command


def test_commit_is_the_library_own_or_none(tmp_path, monkeypatch):
    commit = records.git_commit()
    assert commit is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", commit)
    # An environment inside another project's repository: that project's commit says nothing about us.
    installed = tmp_path / "env" / "records.py"
    installed.parent.mkdir()
    installed.touch()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    monkeypatch.setattr(records, "__file__", str(installed))
    assert records.git_commit() is None
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "y"], check=True)
    assert re.fullmatch("[0-9a-f]{40}", records.git_commit())
    installed.write_text("changed")
    assert records.git_commit().endswith("-dirty")
