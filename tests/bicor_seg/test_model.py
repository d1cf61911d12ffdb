"""The network: as many parameters as published, whole over tiles, and streamed."""

import pytest
import torch

from rsseglab.bicor_seg import BiCoRSeg, CrossAttention
from rsseglab.errors import UserError
from rsseglab.spatial import Layout, cut, join, stream

SMALL = {"encoder": "resnet18", "classes": 5, "dim": 32, "top_k": 0.1}


def network(preset="code", **options):
    torch.manual_seed(0)
    return BiCoRSeg(**(SMALL | options), preset=preset).double().eval()


def image(height=96, width=64, batch=1):
    return torch.randn(batch, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("layers", "millions"), [(1, 88.92), (2, 89.51), (3, 90.11)])
def test_parameters_are_as_many_as_in_the_code(layers, millions):
    with torch.device("meta"):
        model = BiCoRSeg("convnext_base", classes=7, layers=layers, preset="code")
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6 == pytest.approx(millions, abs=0.01)


def test_sizes_at_512_px():
    """As in the table of the facts, for an encoder that is quick to run."""
    model = BiCoRSeg(**(SMALL | {"dim": 256})).train()
    refined = model.refine(torch.randn(2, 3, 512, 512))
    assert refined.logits.shape == refined.auxiliary.shape == (2, 5, 512, 512)
    assert [h.shape for h in refined.heatmaps] == [(2, 5, 128, 128)] * 2
    assert [e.shape for e in refined.embeddings] == [(2, 5, 256)] * 2
    assert model.eval().refine(torch.randn(1, 3, 64, 64)).auxiliary is None


def test_the_auxiliary_head_teaches_no_embedding():
    model = BiCoRSeg(**SMALL).train()
    by_it = torch.autograd.grad(
        model.refine(torch.randn(2, 3, 64, 64)).auxiliary.sum(),
        (model.embeddings.weight, model.auxiliary_head.weight, model.aggregation.joined.weight),
        allow_unused=True,
    )
    assert by_it[0] is None and by_it[1] is not None and by_it[2] is not None


@pytest.mark.parametrize("preset", ["paper", "code"])
@pytest.mark.parametrize("size", [(96, 64), (101, 77)])
def test_tiles_are_one_scene(preset, size):
    model, scene = network(preset), image(*size)
    whole = model.refine(scene)
    for layout in (Layout(2), Layout(4), Layout(2, 2)):
        tiles = model.refine(cut(scene, layout))
        pairs = [(join(tiles.logits), whole.logits), *zip(map(join, tiles.heatmaps), whole.heatmaps, strict=True)]
        for ours, theirs in (*pairs, *zip(tiles.embeddings, whole.embeddings, strict=True)):
            assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-10


def test_it_is_streamed():
    model, scene = network(), image(96, 64)
    plan = stream.plan(model, 96, 64, 3, rows=32)
    assert plan.passes > 1  # a region is of the whole scene
    with torch.no_grad():
        whole = model(scene)
    bands = [band for _, _, band in plan.run(lambda a, b: scene[:, :, a:b])]
    assert (torch.cat(bands, 2) - whole).abs().max() < 1e-10


def test_the_baseline_of_table_4():
    model = network(refinement="attention")
    refined = model.refine(image())
    assert not refined.heatmaps and len(refined.embeddings) == 2 and refined.logits.shape == (1, 5, 96, 64)
    assert isinstance(model.layers[0], CrossAttention)


def test_no_layer_is_a_head_alone():
    refined = network(layers=0).refine(image())
    assert not refined.heatmaps and not refined.embeddings


@pytest.mark.parametrize("options", [{"classes": 1}, {"layers": -1}, {"dim": 40}])
def test_sizes_that_are_none(options):
    with pytest.raises(UserError, match="give at least"):
        BiCoRSeg(**(SMALL | options))


def test_names_that_are_unknown():
    with pytest.raises(UserError, match="hbis or attention"):
        BiCoRSeg(**SMALL, refinement="d2ls")
    with pytest.raises(UserError, match="paper or code"):
        BiCoRSeg(**SMALL, preset="published")
