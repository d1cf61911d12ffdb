"""HBIS against its equations, written out place by place; what gradients pass, and what tiles change."""

import pytest
import torch

from rsseglab.bicor_seg import HBIS, EmbeddingToFeature, FeatureToEmbedding
from rsseglab.bicor_seg.ce2f import modulated
from rsseglab.errors import UserError
from rsseglab.spatial import Layout, cut, join

PRESETS = ["paper", "code"]
C, N = 6, 3


def module(kind=HBIS, preset="code", **options):
    torch.manual_seed(0)
    its = kind(C, preset, **options).double()
    for parameter in its.parameters():
        if parameter.dim():
            torch.nn.init.normal_(parameter, std=0.7)
    return its


def inputs(height=9, width=12, batch=2):
    generator = torch.Generator().manual_seed(1)
    shapes = ((batch, C, height, width), (batch, N, C))
    return [torch.randn(*s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes]


def layer_norm(x, norm):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias


def two_layers(x, layers):
    first, _, second = layers
    h = x @ first.weight.T + first.bias
    h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
    return h @ second.weight.T + second.bias


def twin(its, features, embeddings, top_k):
    """Equations 1 to 10, pixel by pixel and class by class; Eq. 2's weights are numbers, as section 4.2 says."""
    code = its.heatmap.preset == "code"
    batch, _, height, width = features.shape
    pixels = height * width
    count = min(pixels, max(64 if code else 1, round(top_k * pixels)))
    all_features, all_embeddings, all_logits = [], [], []
    for b in range(batch):
        f, ce = features[b].flatten(1).T, embeddings[b]  # (pixels, C), (N, C)
        fn, cen = (layer_norm(f, its.norm_features), layer_norm(ce, its.norm_embeddings)) if code else (f, ce)
        query = cen @ its.heatmap.query.weight.T
        query = query / C**0.5 if code else query + its.heatmap.query.bias
        score = fn @ query.T
        h = 1 / (1 + (-score).exp())  # Eq. 1
        refined = []
        for n in range(N):
            order = sorted(range(pixels), key=lambda x: -score[x, n].item())
            total = sum(h[x, n].item() for x in order[:count])
            context = torch.zeros(C, dtype=torch.float64)
            for x in order[:count]:  # Eq. 2 and 3
                value = fn[x] @ its.f2ce.value.weight.T
                value = value if code else value + its.f2ce.value.bias
                context = context + h[x, n].item() / (total + 1e-6) * value
            joined = torch.cat([cen[n], context])
            gate = two_layers(joined, its.f2ce.gate) if code else joined @ its.f2ce.gate.weight.T + its.f2ce.gate.bias
            gate = 1 / (1 + (-gate).exp())  # Eq. 4
            candidate = two_layers(context, its.f2ce.candidate) if code else context
            refined.append((1 - gate) * ce[n] + gate * candidate)  # Eq. 5
        ce = torch.stack(refined)
        gamma = 1 + torch.tanh(ce @ its.ce2f.scale.weight.T + its.ce2f.scale.bias)  # Eq. 6
        beta = ce @ its.ce2f.shift.weight.T + its.ce2f.shift.bias  # Eq. 7
        logits = score if code else h
        soft = logits.exp() / logits.exp().sum(1, keepdim=True)  # Eq. 9
        mixed = sum(soft[:, n, None] * (gamma[n] * f + beta[n]) for n in range(N))  # Eq. 8
        f = its.ce2f.alpha * f + (1 - its.ce2f.alpha) * mixed  # Eq. 10
        all_features.append(f.T.reshape(C, height, width))
        all_embeddings.append(ce)
        all_logits.append(logits.T.reshape(N, height, width))
    return torch.stack(all_features), torch.stack(all_embeddings), torch.stack(all_logits)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("top_k", [0.05, 0.9, 1.0])
def test_it_is_the_equations_and_so_are_its_gradients(preset, top_k):
    its, given = module(preset=preset, top_k=top_k), inputs()
    ours, theirs = its(*given), twin(its, *given, top_k)
    weights = [torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2)) for y in ours]
    leaves = [*given, *its.parameters()]
    gradients = [
        torch.autograd.grad(sum((w * y).sum() for w, y in zip(weights, ys, strict=True)), leaves, allow_unused=True)
        for ys in (ours, theirs)
    ]
    for a, b in (*zip(ours, theirs, strict=True), *zip(*gradients, strict=True)):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).abs().max() < 1e-12 * max(1, b.abs().max().item())


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_pass_the_pooling_through_the_features_alone(preset):
    """Scores say what is taken and how it weighs; what is learned from the pooled embedding says nothing to them."""
    its, (features, embeddings) = module(FeatureToEmbedding, preset), inputs()
    score = torch.randn(2, N, 9, 12, dtype=torch.float64).requires_grad_()
    refined = its(features, embeddings, score)
    by_score, by_features = torch.autograd.grad(refined.sum(), (score, features), allow_unused=True)
    assert by_score is None
    region = its.region(score).amax(1, keepdim=True)  # pixels that some class has taken
    assert (by_features.abs().sum(1, keepdim=True) > 0).to(region.dtype).equal(region)


def test_a_region_is_the_share_of_pixels_and_no_fewer_than_64():
    score = torch.randn(2, N, 40, 50)
    for preset, top_k, count in (("code", 0.02, 64), ("paper", 0.02, 40), ("code", 0.1, 200), ("code", 1.0, 2000)):
        region = module(FeatureToEmbedding, preset, top_k=top_k).region(score)
        assert region.sum((2, 3)).eq(count).all()
        lowest = score.masked_fill(region == 0, float("inf")).amin((2, 3))
        assert (score.masked_fill(region == 1, float("-inf")).amax((2, 3)) <= lowest).all()
    tiny = module(FeatureToEmbedding, "code").region(score[..., :2, :3])
    assert tiny.eq(1).all()  # fewer pixels than 64: all of them


def test_scores_that_a_sigmoid_cannot_tell_apart_are_told_apart():
    score = torch.linspace(20, 60, 400).reshape(1, 1, 20, 20)
    assert score.sigmoid().eq(1).all()
    region = module(FeatureToEmbedding, "paper", top_k=0.01).region(score)
    assert region.flatten().nonzero().flatten().tolist() == [396, 397, 398, 399]


def test_pixels_of_equal_score_are_taken_together():
    score = torch.zeros(1, 1, 10, 10)
    score[0, 0, 0, 0] = 1
    assert module(FeatureToEmbedding, "paper", top_k=0.05).region(score).eq(1).all()


@pytest.mark.parametrize(("preset", "everything"), [("code", True), ("paper", False)])
def test_a_class_without_any_response(preset, everything):
    """Its region's heatmaps sum to nothing: the code pools all pixels instead, and neither gives a NaN."""
    its = module(FeatureToEmbedding, preset, top_k=0.5)
    weights = its.weights(torch.full((1, 1, 12, 12), -100.0).double() + torch.arange(12).double())
    assert weights.isfinite().all() and weights.sum() < 1e-3
    assert weights.gt(0).all() == everything
    assert its(*inputs(12, 12, 1), torch.full((1, N, 12, 12), -1e4).double()).isfinite().all()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("layout", [Layout(1), Layout(2), Layout(4), Layout(2, 2)])
def test_tiles_are_one_scene(preset, layout):
    """Regions are of the whole scene, sums are all-reduced: outputs and gradients are those of one tile."""
    its, (features, embeddings) = module(preset=preset, top_k=0.3), inputs(16, 20)
    whole = its(features, embeddings)
    cut_features, cut_embeddings, cut_logits = its(cut(features, layout), embeddings)
    found = (join(cut_features), cut_embeddings, join(cut_logits))
    for a, b in zip(found, whole, strict=True):
        assert (a - b).abs().max() < 1e-12
    leaves = [features, embeddings, *its.parameters()]
    gradients = [torch.autograd.grad(sum((y**2).sum() for y in ys), leaves, allow_unused=True) for ys in (found, whole)]
    for a, b in zip(*gradients, strict=True):
        assert (a is None and b is None) or (a - b).abs().max() < 1e-10


def test_modulation_is_the_literal_one():
    features, _ = inputs()
    gamma, beta = (torch.randn(2, N, C, dtype=torch.float64) for _ in range(2))
    soft = torch.randn(2, N, 9, 12, dtype=torch.float64).softmax(1)
    each = gamma[..., None, None] * features[:, None] + beta[..., None, None]  # (B, N, C, H, W)
    literal = (soft[:, :, None] * each).sum(1)
    assert (modulated(features, gamma, beta, soft) - literal).abs().max() < 1e-13


def test_alpha_is_learned_in_the_paper_alone():
    assert "alpha" in dict(EmbeddingToFeature(C, "paper").named_parameters())
    assert "alpha" not in dict(EmbeddingToFeature(C, "code").named_parameters())


def test_parameters_are_as_many_as_in_the_code():
    assert sum(p.numel() for p in HBIS(256, "code").parameters()) == 592_384


def test_what_does_not_go_together_is_said():
    features, embeddings = inputs()
    with pytest.raises(UserError, match="choose paper or code"):
        HBIS(C, "published")
    with pytest.raises(UserError, match="no share"):
        HBIS(C, top_k=0)
    with pytest.raises(UserError, match="do not go together"):
        module()(features, embeddings[..., :2])
