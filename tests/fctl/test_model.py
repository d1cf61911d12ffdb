"""FCtL as a network: what it is before training, what its streams see, how stages are put together."""

import pytest
import torch

from rsseglab.errors import UserError
from rsseglab.fctl.model import FCtL
from rsseglab.training.networks import build_network

ENCODER = "mobilenetv3_small_050"


def network(contexts=(1, 2, 3), classes=5, **options):
    torch.manual_seed(0)
    return FCtL(ENCODER, contexts, classes, decoder="fcn", **options).double().eval()


def awake(net):
    """With correlations that count: their gamma starts at 0."""
    for correlation in net.correlations:
        torch.nn.init.ones_(correlation.gamma)
        for projection in (correlation.query, correlation.key, correlation.value):
            torch.nn.init.normal_(projection.weight, std=0.1)
    return net


def images(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_before_training_it_is_its_baseline():
    with_contexts, without = network(), network(())
    without.load_baseline(with_contexts)
    patch, contexts = images(2, 3, 64, 64), images(2, 2, 3, 64, 64)
    plain = build_network("stock", ENCODER, "fcn", 3, 5).double().eval()
    with_contexts.load_baseline(plain)
    without.load_baseline(plain)
    expected = plain(patch)
    assert (with_contexts(patch, contexts) - expected).abs().max() < 1e-12
    assert (without(patch, contexts[:, :0]) - expected).abs().max() < 1e-12


def test_it_is_its_parts_put_together():
    net = awake(network())
    patch, contexts = images(2, 3, 64, 96), images(2, 2, 3, 64, 96)
    maps = list(net.encoder(patch))
    wide = [net.encoder(contexts[:, i])[-1] for i in range(2)]
    gathered = [c(maps[-1], u) for c, u in zip(net.correlations, [maps[-1], *wide], strict=True)]
    maps[-1] = maps[-1] + net.fusion(gathered)
    expected = net.head(net.decoder(maps))
    assert (net(patch, contexts) - expected).abs().max() < 1e-12
    relevance, weights = net.explain(patch, contexts)
    assert [r.shape for r in relevance] == [(2, 6, 6)] * 3 and weights.shape[0] == 3
    assert torch.allclose(weights.sum(0), torch.ones(()).double())


def test_norms_see_patches_and_contexts_together():
    """In train mode, so that the running statistics fit both; frozen streams have statistics of their own."""
    net = network(streams="shared").train()
    patch, contexts = images(2, 3, 64, 64), images(2, 2, 3, 64, 64) * 5 + 3
    norm = next(m for m in net.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d))
    seen = []
    norm.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    net(patch, contexts)
    assert len(seen) == 1 and len(seen[0]) == 6
    expected = 0.1 * seen[0].mean((0, 2, 3))
    assert (norm.running_mean - expected).abs().max() < 1e-12


@pytest.mark.parametrize("side", [40, 64, 100])
def test_patches_of_any_side(side):
    net = awake(network((1, "scene")))
    assert net(images(1, 3, side, side), images(1, 1, 3, side, side)).shape == (1, 5, side, side)


def test_each_patch_sees_its_own_contexts_and_one_whole_scene():
    net = awake(network((2, "scene")))
    patch, contexts = images(2, 3, 64, 64), images(2, 2, 3, 64, 64)
    contexts[:, 1] = contexts[:1, 1]  # one scene
    both = net(patch, contexts)
    assert (both[1:] - net(patch[1:], contexts[1:])).abs().max() < 1e-12
    wide = [net.look(0, contexts[:, 0]), net.look(1, contexts[:1, 1])]
    assert (net.label(patch, wide) - both).abs().max() < 1e-12
    assert (net(patch, contexts.flip(0)) - both).abs().max() > 1e-6


def test_frozen_streams_learn_nothing():
    net = awake(network(streams="frozen")).train()
    before = {k: v.clone() for k, v in net.context_encoders.state_dict().items()}
    loss = net(images(2, 3, 64, 64), images(2, 2, 3, 64, 64)).square().mean()
    loss.backward()
    assert all(p.grad is None for p in net.context_encoders.parameters())
    assert all(p.grad is not None for p in net.correlations.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.context_encoders.state_dict().items())


def test_stages_are_put_together():
    stages = {2: network((2,)), 3: network((3,))}
    for k, stage in enumerate(stages.values()):
        for p in stage.parameters():
            torch.nn.init.constant_(p, 0.01 * (k + 1))
    whole = network(streams="frozen")
    whole.load_stages(stages)
    assert next(whole.encoder.parameters()).flatten()[0] == 0.01
    assert [next(e.parameters()).flatten()[0].item() for e in whole.context_encoders] == [0.01, 0.02]
    assert [c.gamma.item() for c in whole.correlations] == [0, 0.01, 0.02]


def test_equal_parameters_without_contexts():
    """The control of three streams of self-attention."""
    count = [sum(p.numel() for p in network(c).parameters()) for c in ((1, 2, 3), (1, 1, 1), (1, 3, "scene"))]
    assert len(set(count)) == 1


@pytest.mark.parametrize("options", [{"correlation": "concatenation"}, {"fusion": "mean"}, {"fusion": "paper"}])
def test_the_ablations_learn(options):
    net = network(**options).train()
    net(images(2, 3, 64, 64), images(2, 2, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None for p in net.correlations.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contexts": (0.5,)}, "smaller than its patch"),
        ({"fusion": "max"}, "there is no fusion"),
        ({"streams": "apart"}, "there is no streams"),
        ({"correlation": "none"}, "there is no correlation"),
        ({"edge": "mirror"}, "there is no edge"),
    ],
)
def test_networks_that_are_none(options, message):
    with pytest.raises(UserError, match=message):
        network(**options)


def test_contexts_that_do_not_fit():
    with pytest.raises(UserError, match="one of each scale for each patch"):
        network()(images(2, 3, 64, 64), images(2, 1, 3, 64, 64))
    with pytest.raises(UserError, match="tells where it looks"):
        network(correlation="concatenation").explain(images(2, 3, 64, 64), images(2, 2, 3, 64, 64))
    with pytest.raises(UserError, match="another encoder"):
        network().load_baseline(build_network("stock", "resnet18", "fcn", 3, 5))


def test_tokens_are_no_maps():
    with pytest.raises(UserError, match="dpt decodes tokens"):
        FCtL("vit_tiny_patch16_224", (1, 2), 4, decoder="dpt")
