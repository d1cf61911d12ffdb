"""Contexts carry what a patch cannot see: twin scenes, whose key lies farther away than a patch is wide."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rsseglab.evaluation.evaluate import index_reader
from rsseglab.experiments.compare import PRESETS, config_of, scenes_of
from rsseglab.fctl.predict import predict_contexts
from rsseglab.fctl.training import fit_fctl
from rsseglab.inference.crops import Cropping
from rsseglab.scenes.twins import label_pair_accuracy
from rsseglab.training.checkpoint import load_checkpoint

TWINS = PRESETS["twins-far"]
CROPS = Cropping(TWINS.crop_px, 0, "flat")


@pytest.fixture(scope="module")
def split():
    return scenes_of(TWINS)


def pair_accuracy(trained, scenes, folder, context_scene=None):
    indices = []
    for scene in scenes:
        path = folder / f"{scene.name}.tif"
        predict_contexts(trained, scene, path, CROPS, context_scene=context_scene, progress=False)
        indices.append(index_reader(path, scene)(scene.window))
    return label_pair_accuracy(np.stack(indices), np.stack([scene.read_label() for scene in scenes]))


def trained(split, folder, seed, contexts):
    config = config_of(TWINS, TWINS.methods["fctl"], seed, folder)
    config = replace(config, options={"contexts": contexts})
    done = fit_fctl(split.train, split.val, config, folder / f"{contexts}", progress=False)
    return load_checkpoint(done.checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_contexts_solve_twins_and_nothing_else_does(split, tmp_path, seed):
    torch.set_num_threads(1)
    assert TWINS.crop_px <= TWINS.context_px
    wide = trained(split, tmp_path, seed, [1, 2, "scene"])
    alone = trained(split, tmp_path, seed, [1, 1, 1])
    assert sum(p.numel() for p in wide.network.parameters()) == sum(p.numel() for p in alone.network.parameters())
    found = {
        "contexts": pair_accuracy(wide, split.test, tmp_path),
        "another scene's": pair_accuracy(wide, split.test, tmp_path, context_scene=split.val[0]),
        "self-attention": pair_accuracy(alone, split.test, tmp_path),
    }
    print(seed, found)
    assert found["contexts"] > 0.9
    # A patch shows nothing of the bit: answers for both twins are the same, bit for bit.
    assert found["another scene's"] == 0.5 and found["self-attention"] == 0.5
