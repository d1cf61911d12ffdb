"""REST: exact where it says so, tile by tile where it says so, over every number of tiles."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from rsseglab.decoders import create_network
from rsseglab.errors import UserError
from rsseglab.rest import INTERACTIONS, REST
from rsseglab.spatial import Layout, cut, join
from tests.spatial.ranks import spawn

NETWORKS = [
    ("resnet18", "unet", 8),
    ("tf_efficientnet_lite0", "unet", 8),
    ("convnext_atto", "unet", 8),  # SPIM inline
    ("mit_b0", "segformer", 8),
    ("vit_tiny_patch16_224", "dpt", 3),
]
TILEWISE = [i for i in INTERACTIONS if not i.startswith("exact")]
EXACT = [i for i in INTERACTIONS if i.startswith("exact")]


def rest(encoder="resnet18", decoder="unet", heads=8, interaction="exact+spim", **options):
    torch.manual_seed(0)
    options = {"strides": (16, 32), **options}
    model = REST(encoder, decoder, 5, interaction, heads=heads, **options).double().train()
    for module in model.modules():  # their coins are tested with the engine
        if type(module).__name__ in ("Dropout", "Dropout2d"):
            module.p = 0.0
        if type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    return model


def scene(height=150, width=200, batch=1):
    return torch.randn(batch, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def run(model, x, layout=None):
    """Logits, gradients and statistics of a step."""
    model = copy.deepcopy(model)
    y = model(x) if layout is None else join(model(cut(x, layout)))
    y.square().mean().backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    if layout is not None and layout.mesh is not None:
        for grad in grads:
            dist.all_reduce(grad)
            grad /= layout.parts
    return [y.detach(), *grads, *(b.double() for b in model.buffers())]


def worst(ours, theirs):
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("interaction", EXACT)
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_exact_over_tiles(network, interaction):
    model, x = rest(*network, interaction), scene()
    plain = run(model, x)
    for layout in (Layout(3), Layout(2, 2)):
        assert worst(run(model, x, layout), plain) < 1e-10


@pytest.mark.parametrize("interaction", TILEWISE)
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_tile_by_tile_is_another_function(network, interaction):
    model, x = rest(*network, interaction), scene()
    with torch.no_grad():
        answers = [model(x), *(join(model(cut(x, layout))) for layout in (Layout(2), Layout(1, 3), Layout(2, 2)))]
    for i, a in enumerate(answers):
        for b in answers[:i]:
            assert (a - b).norm() / b.norm() > 0.01


def test_none_is_the_network_on_each_tile():
    model, x = rest(interaction="none").eval(), scene(128, 192, batch=2)
    tiles = [model.network(x[:, :, r : r + 64, c : c + 96]) for r in (0, 64) for c in (0, 96)]
    rows = [torch.cat(tiles[:2], dim=3), torch.cat(tiles[2:], dim=3)]
    assert (join(model(cut(x, Layout(2, 2)))) - torch.cat(rows, dim=2)).abs().max() < 1e-10


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_logits_are_cut_as_labels_are(interaction):
    x, layout = cut(scene(167, 201), Layout(2, 2)), Layout(2, 2)
    logits = rest(interaction=interaction)(x)
    label = cut(torch.zeros(1, 167, 201), layout)
    assert [tile.shape[-2:] for tile in logits.tiles] == [tile.shape[-2:] for tile in label.tiles]


def test_spim_is_all_that_crosses_a_border():
    """Without it a tile's answer depends on the tile alone; with it on every other one."""
    x = scene(128, 128)
    moved = x.clone()
    moved[..., 100, 100] += 5  # in the last tile
    for interaction, crosses in (("none", False), ("spim", True)):
        model = rest(interaction=interaction).eval()
        change = (join(model(cut(moved, Layout(2, 2)))) - join(model(cut(x, Layout(2, 2))))).abs()
        assert (change[..., :64, :64].max() > 0) == crosses and change[..., 64:, 64:].max() > 0


def test_exact_decoder_after_encoders_alone():
    tile, exact = (rest(interaction="spim", decode=how).eval() for how in ("tile", "exact"))
    x = scene(128, 192)
    ours, theirs = (join(m(cut(x, Layout(2)))) for m in (tile, exact))
    assert (ours - theirs).norm() / ours.norm() > 1e-3
    with torch.no_grad():
        assert (tile(x) - exact(x)).abs().max() < 1e-12
    with pytest.raises(UserError, match="prefix tokens"):
        rest("vit_tiny_patch16_224", "dpt", 3, "spim", decode="exact")(cut(x, Layout(2)))


def _on_ranks(rank, interaction, encoder):
    layout = Layout(2, 2, mesh=init_device_mesh("cpu", (4,)))
    model, x = rest(encoder, interaction=interaction), scene(128, 160)
    assert worst(run(model, x, layout), run(model, x, Layout(2, 2))) < 1e-10
    if interaction in EXACT:
        assert worst(run(model, x, layout), run(model, x)) < 1e-10


@pytest.mark.parametrize(
    ("interaction", "encoder"), [("spim", "convnext_atto"), ("exact+spim", "resnet18"), ("none", "resnet18")]
)
def test_over_ranks(interaction, encoder):
    spawn(4, _on_ranks, interaction, encoder, seconds=120)


@pytest.mark.parametrize("layout", [None, Layout(2, 2)], ids=["plain", "cut"])
@pytest.mark.parametrize("interaction", ["spim", "exact+spim"])
def test_checkpointing_changes_nothing(interaction, layout):
    """Neither gradients nor batch norms' statistics, which must not count a step twice."""
    kept, again = (rest(interaction=interaction, checkpointing=c) for c in (False, True))
    assert worst(run(again, scene(), layout), run(kept, scene(), layout)) == 0


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_second_stage(network):
    """SPIM, decoder and the last stage train; what is frozen stays as it is, statistics too."""
    model = rest(*network)
    baseline = create_network(network[0], network[1], 3, 5).double()
    model.load_baseline(baseline)
    model.freeze_early_stages()
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(scene()).square().mean().backward()
    optimizer.step()
    moved = {k for k, v in model.state_dict().items() if isinstance(v, torch.Tensor) and not torch.equal(v, before[k])}
    in_encoder = {k for k in before if k.startswith("network.encoder")}
    assert any("spims" in k for k in moved) and any("decoder" in k for k in moved)
    assert moved & in_encoder and len(moved & in_encoder) < len(in_encoder) * 0.7
    firsts = ("model.conv1.", "stem", "patch_embed.", "patch_embed1.")
    first = [k for k in in_encoder if any(name in k for name in firsts)]
    assert first and not moved & set(first)
    for key, value in baseline.state_dict().items():
        assert torch.equal(value, before[f"network.{key}"])
    with pytest.raises(UserError, match="another network"):
        model.load_baseline(create_network("mobilenetv3_small_050", "fpn", 3, 5))


def test_second_stage_of_as_many_heads_as_tiles():
    """What is early is found without asking SPIM, which is made for two tiles."""
    for before in (False, True):
        model = rest("convnext_atto", "unet", interaction="exact+spim", heads="world", strides=(16, 32)).train()
        if before:
            model(cut(scene(), Layout(2)))
        model.freeze_early_stages()
        model(cut(scene(), Layout(2)))
        assert {spim._trained_heads for spim in model.spims.values()} == {2}


def test_frozen_stages_drop_nothing_and_something_must_be_left():
    model = rest("mit_b0", "unet")
    model.freeze_early_stages()
    early = model.train().network.encoder.block1
    assert not any(module.training for module in early.modules()) and model.network.encoder.block4.training
    with pytest.raises(UserError, match="none is early"):
        rest("test_vit", "upernet").freeze_early_stages()


def test_levels_and_options():
    model = rest(strides=(4, 8, 16, 32), pool={4: 4})
    assert [model.spims[k].pool for k in model.spims] == [4, 1, 1, 1]
    assert [model.spims[k].dim for k in model.spims] == [64, 128, 256, 512]
    added = sum(p.numel() for p in model.spims.parameters())
    assert added == pytest.approx(sum(12 * c**2 for c in (64, 128, 256, 512)), rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": (16, 64)}, "no maps of stride 64"),
        ({"strides": (16,), "pool": {4: 2}}, "stride 4, which gets no SPIM"),
        ({"heads": "many"}, "heads is 'many'"),
    ],
)
def test_options_that_would_do_nothing(options, message):
    with pytest.raises(UserError, match=message):
        rest(**options)


@pytest.mark.parametrize("options", [{"residual": "plain"}, {"pool": {16: 2}}])
def test_weights_of_another_function(options):
    with pytest.raises(UserError, match="another function; build SPIM as it was"):
        rest(strides=(16,), **options).load_state_dict(rest(strides=(16,)).state_dict())


def test_the_published_count_of_parameters():
    """37.6 million for the channels of Swin-L."""
    with torch.device("meta"):
        from rsseglab.rest import SPIM

        count = sum(p.numel() for c in (192, 384, 768, 1536) for p in SPIM(c).parameters())
    assert count / 1e6 == pytest.approx(37.6, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interaction": "halo"}, "unknown interaction 'halo'"),
        ({"placement": "behind"}, "unknown placement"),
        ({"decode": "slow"}, "unknown decode"),
        ({"strides": ()}, "no map of strides"),
        ({"heads": 7}, "7 heads do not divide"),
        ({"encoder": "mit_b0", "decoder": "segformer", "placement": "inline"}, "can't sit inline"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(UserError, match=message):
        rest(**options)


def test_more_tiles_than_rows():
    with pytest.raises(ValueError, match="can't be cut in 9"):
        rest()(cut(scene(8, 8), Layout(9)))


def test_the_network_is_stock():
    assert isinstance(rest().network, nn.Module) and type(rest().network).__module__.startswith("segmentation_models")
