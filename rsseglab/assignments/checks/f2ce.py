"""HBIS's feature-to-embedding step, held against `rsseglab.bicor_seg.FeatureToEmbedding`."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsseglab.assignments.checking import Assignment, Case, Check, Function, Mistake
from rsseglab.bicor_seg.f2ce import FeatureToEmbedding

Linear = tuple[Tensor, Tensor]


def _reference(
    features: Tensor, embeddings: Tensor, score: Tensor, value: Linear, gate: Linear, share: float
) -> Tensor:
    module = FeatureToEmbedding(features.shape[1], "paper", share)
    names = ("value.weight", "value.bias", "gate.weight", "gate.bias")
    module.load_state_dict(dict(zip(names, (*value, *gate), strict=True)))
    found: Tensor = module(features, embeddings, score)
    return found


def _case(rng: np.random.Generator, batch: int, share: float) -> Case:
    C, N, height, width = 6, 3, 8, 9

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.normal(size=shape)).float()

    features, embeddings = normal(batch, C, height, width), normal(batch, N, C)
    score = 2 * normal(batch, N, height, width)
    return features, embeddings, score, (normal(C, C) / 2, normal(C)), (normal(1, 2 * C) / 3, normal(1)), share


def _of_all_pixels(rng: np.random.Generator) -> list[Case]:
    return [_case(rng, 1, 1.0)]


def _of_a_region(rng: np.random.Generator) -> list[Case]:
    return [_case(rng, 1, 0.1), _case(rng, 1, 0.25)]


def _of_a_batch(rng: np.random.Generator) -> list[Case]:
    return [_case(rng, 3, 0.15)]


def _gradients(function: Function, features: Tensor, embeddings: Tensor, score: Tensor, *rest: Any) -> list[Tensor]:
    """Of some sum of the result: by the features, and by the score."""
    features, score = features.clone().requires_grad_(), score.clone().requires_grad_()
    found = function(features, embeddings, score, *rest)
    if found.requires_grad:
        (found * torch.arange(1.0, 1 + found.numel()).reshape(found.shape)).sum().backward()
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in (features, score)]


def _refined(
    features: Tensor, embeddings: Tensor, score: Tensor, value: Linear, gate: Linear, share: float, *,
    stopped: bool = True, region: str = "class", normalised: bool = True, weighed: bool = True,
    heatmap: str = "sigmoid", swapped: bool = False, first: bool = True,
) -> Tensor:  # fmt: skip
    """The step with one thing or another wrong."""
    weights = score.sigmoid() if heatmap == "sigmoid" else score.softmax(1)
    pixels = score.shape[2] * score.shape[3]
    count = max(1, round(share * pixels))
    if region == "class":
        lowest = score.flatten(2).topk(count).values[..., -1]
        weights = weights * (score >= lowest[..., None, None])
    elif region == "classes":
        lowest = score.flatten(1).topk(count * score.shape[1]).values[..., -1]
        weights = weights * (score >= lowest[:, None, None, None])
    weights = weights if weighed else (weights > 0).float()
    weights = weights / (weights.sum((2, 3), keepdim=True) + 1e-6) if normalised else weights
    weights = weights.detach() if stopped else weights
    pooled = torch.einsum("bnhw,bchw->bnc", weights, features)
    context = pooled @ value[0].mT + value[1] * weights.sum((2, 3))[..., None]
    both = [embeddings, context] if first else [context, embeddings]
    G = (torch.cat(both, -1) @ gate[0].mT + gate[1]).sigmoid()
    G = 1 - G if swapped else G
    return (1 - G) * embeddings + G * context


def _wrong(**how: Any) -> Function:
    def answer(
        features: Tensor, embeddings: Tensor, score: Tensor, value: Linear, gate: Linear, share: float
    ) -> Tensor:
        return _refined(features, embeddings, score, value, gate, share, **how)

    return answer


def _all_stopped(
    features: Tensor, embeddings: Tensor, score: Tensor, value: Linear, gate: Linear, share: float
) -> Tensor:
    return _refined(features, embeddings, score, value, gate, share).detach()


def _context_alone(
    features: Tensor, embeddings: Tensor, score: Tensor, value: Linear, gate: Linear, share: float
) -> Tensor:
    always = (torch.zeros_like(gate[0]), torch.full_like(gate[1], 100.0))
    return _refined(features, embeddings, score, value, always, share)


ASSIGNMENT = Assignment(
    name="f2ce",
    function="refine",
    component="rsseglab.bicor_seg.FeatureToEmbedding",
    reference=_reference,
    checks=(
        Check("all pixels are the region", 3, _of_all_pixels),
        Check("the region is a share of the pixels", 3, _of_a_region),
        Check("a batch", 2, _of_a_batch),
        Check("where gradients pass, and where not", 2, _of_a_region, _gradients),
    ),
    mistakes=(
        Mistake(
            "gradients pass through the heatmap's weights: the stop-gradient is missing. Detach the weights, so that "
            "the pooling is learnt through the features alone",
            _wrong(stopped=False),
        ),
        Mistake("no gradient passes at all; detach the weights, and nothing else", _all_stopped),
        Mistake("all pixels are pooled; a class's region is the share of pixels with its highest scores",
                _wrong(region="all")),
        Mistake(
            "regions are taken from all classes together, so that a loud class takes the pixels of the others; each "
            "class has its own region",
            _wrong(region="classes"),
        ),
        Mistake("weights are not divided by their sum in the region, so that large heatmaps make long vectors",
                _wrong(normalised=False)),
        Mistake("all pixels of the region count alike; weigh each by its heatmap", _wrong(weighed=False)),
        Mistake("the heatmap is a softmax over classes; it is a sigmoid, for each class by itself",
                _wrong(heatmap="softmax")),
        Mistake("the gate is the wrong way round: G is how much of the new vector is taken, 1 - G of the old one",
                _wrong(swapped=True)),
        Mistake("the gate reads [C ‖ CE]; it reads the embedding first, [CE ‖ C]", _wrong(first=False)),
        Mistake("the gate is missing: the new vector replaces the embedding", _context_alone),
    ),
)  # fmt: skip
