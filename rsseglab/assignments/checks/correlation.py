"""Locality-aware correlation, held against `rsseglab.fctl.correlation.LocalityAwareCorrelation`."""

import numpy as np
import torch
from torch import Tensor

from rsseglab.assignments.checking import Assignment, Case, Check, Mistake
from rsseglab.fctl.correlation import LocalityAwareCorrelation


def _module(
    local: Tensor, context: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor, gamma: float,
    *, value: str = "context", scaled: bool = False,
) -> Tensor:  # fmt: skip
    module = LocalityAwareCorrelation(local.shape[1], value, scaled=scaled)
    weights = {f"{name}.weight": w[..., None, None] for name, w in
               (("query", w_query), ("key", w_key), ("value", w_value))}  # fmt: skip
    module.load_state_dict({**weights, "gamma": torch.tensor(gamma)})
    with torch.no_grad():
        found: Tensor = module(local, context)
    return found


def _reference(local: Tensor, context: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor, gamma: float) -> Tensor:
    return _module(local, context, w_query, w_key, w_value, gamma)


def _case(rng: np.random.Generator, batch: int, size: tuple[int, int], wide: tuple[int, int]) -> Case:
    C = 6

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.normal(size=shape)).float()

    weights = (normal(C, C) / C**0.5 for _ in range(3))
    return normal(batch, C, *size), normal(batch, C, *wide), *weights, float(rng.uniform(0.3, 0.9))


def _alike(rng: np.random.Generator) -> list[Case]:
    return [_case(rng, 1, (5, 5), (5, 5))]


def _of_other_shape(rng: np.random.Generator) -> list[Case]:
    return [_case(rng, 1, (4, 6), (7, 3)), _case(rng, 1, (6, 2), (3, 3))]


def _batch(rng: np.random.Generator) -> list[Case]:
    return [_case(rng, 3, (4, 5), (4, 5))]


def _attended(
    local: Tensor, context: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor,
    *, axis: int = -1, softmax: bool = True,
) -> Tensor:  # fmt: skip
    """(B, H W, C)."""
    near, far = (x.flatten(2).mT for x in (local, context))
    relevance = near @ w_query.mT @ (far @ w_key.mT).mT
    return (relevance.softmax(axis) if softmax else relevance) @ (far @ w_value.mT)


def _wrong_axis(
    local: Tensor, context: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor, gamma: float
) -> Tensor:
    return gamma * _attended(local, context, w_query, w_key, w_value, axis=1).mT.reshape(local.shape)


def _no_softmax(
    local: Tensor, context: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor, gamma: float
) -> Tensor:
    return gamma * _attended(local, context, w_query, w_key, w_value, softmax=False).mT.reshape(local.shape)


def _scaled(local: Tensor, context: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor, gamma: float) -> Tensor:
    return _module(local, context, w_query, w_key, w_value, gamma, scaled=True)


def _own_values(
    local: Tensor, context: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor, gamma: float
) -> Tensor:
    return _module(local, context, w_query, w_key, w_value, gamma, value="local")


def _no_gamma(local: Tensor, context: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor, gamma: float) -> Tensor:
    return _module(local, context, w_query, w_key, w_value, 1.0)


def _residual(local: Tensor, context: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor, gamma: float) -> Tensor:
    return local + _module(local, context, w_query, w_key, w_value, gamma)


def _roles(local: Tensor, context: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor, gamma: float) -> Tensor:
    return _module(context, local, w_query, w_key, w_value, gamma)


def _reshaped(local: Tensor, context: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor, gamma: float) -> Tensor:
    return gamma * _attended(local, context, w_query, w_key, w_value).reshape(local.shape)


def _transposed(
    local: Tensor, context: Tensor, w_query: Tensor, w_key: Tensor, w_value: Tensor, gamma: float
) -> Tensor:
    return _module(local, context, w_query.mT, w_key.mT, w_value.mT, gamma)


ASSIGNMENT = Assignment(
    name="correlation",
    function="correlate",
    component="rsseglab.fctl.correlation.LocalityAwareCorrelation",
    reference=_reference,
    checks=(
        Check("a patch in its context", 4, _alike),
        Check("a context of another shape", 3, _of_other_shape),
        Check("a batch", 3, _batch),
    ),
    mistakes=(
        Mistake(
            "the softmax runs over the patch's places (i); each place of the patch shares its attention out among the "
            "places of the context (j), the last axis of R",
            _wrong_axis,
        ),
        Mistake("relevances weigh the values as they are; take the softmax over the context's places first",
                _no_softmax),
        Mistake("the relevance is divided by √C, as in transformers; FCtL takes it as it is", _scaled),
        Mistake(
            "values come from the patch, as the paper's formula has it; here they come from the context, as in the "
            "authors' code: what is gathered is what the context shows",
            _own_values,
        ),
        Mistake("gamma is missing: it scales the result, and is learnt from 0 on", _no_gamma),
        Mistake("the patch's own features are added; this module gives only what was gathered", _residual),
        Mistake("patch and context have changed roles: queries come from the patch, keys and values from the context",
                _roles),
        Mistake(
            "places and channels are mixed up at the end: (B, H W, C) becomes a map by transposing to (B, C, H W) "
            "first, and then reshaping",
            _reshaped,
        ),
        Mistake(
            "weights are transposed: W has a row an output channel, so a feature x (a row) becomes x Wᵀ", _transposed
        ),
    ),
)  # fmt: skip
