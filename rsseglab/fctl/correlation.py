r"""Locality-aware correlation: each place of a patch gathers, from a context, what resembles it.

Every position i of the local map looks at every position j of the context's map:

.. math::
    R_{ij} = \langle q_i, k_j \rangle, \qquad
    \bar X_i = \gamma \sum_j \mathrm{softmax}_j(R_{ij})\, v_j, \qquad
    q = W_q X^{local}, \quad k = W_k X^{context}, \quad
    v = \begin{cases} W_v X^{context} & \text{code} \\ W_v X^{local} & \text{paper} \end{cases}

The authors' code takes the values from the context: cross attention. The paper's formula applies the relevance to the
local features, so that what stands at the *context's* position j weighs what stands at the *patch's* position j; as the
two maps show different ground, this mixes the patch's own features by the look of another place. Both are here.

There is no positional encoding: a context says what there is around, not where.

Source:
    Li, Yang, Liu, Yu, He, "From Contexts to Locality", ICCV 2021, section 3.1.2; projections, gamma and its start at 0,
    and the values' side as in the authors' public code (MIT), of which none is used here. The whitened form: their
    DeepGlobe branch, after Yin et al., "Disentangled Non-Local Neural Networks", ECCV 2020, equation 6.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsseglab.errors import UserError

VALUES = ("context", "local")


class LocalityAwareCorrelation(nn.Module):
    """Attention of a local map over a context's map; see the module's equation.

    Args:
        dim: channels C of both maps.
        value: "context" (code) or "local" (paper), where values come from.
        whiten: take the mean over positions from queries and from keys, so that what all places have in common does
            not count (the code for DeepGlobe).
        scaled: divide the relevance by the root of C, which neither the paper nor the code does.

    Shapes:
        local (B, C, H, W); context (B, C, H', W'), of another size only with ``value="context"``; output as local.

    Raises:
        UserError: an unknown ``value``; other channels, batches or sizes than these.
    """

    def __init__(self, dim: int, value: str = "context", whiten: bool = False, scaled: bool = False) -> None:
        super().__init__()
        if value not in VALUES:
            raise UserError(f"values come from {' or '.join(VALUES)}, not '{value}'; choose one of them.")
        self.dim, self.value_of, self.whiten = dim, value, whiten
        self.scale = dim**-0.5 if scaled else 1.0
        self.query, self.key, self.value = (nn.Conv2d(dim, dim, 1, bias=False) for _ in range(3))
        self.gamma = nn.Parameter(torch.zeros(()))
        for projection in (self.query, self.key, self.value):
            nn.init.normal_(projection.weight, std=0.01)

    def forward(self, local: Tensor, context: Tensor) -> Tensor:
        """The locality-aware map of a patch in a context."""
        q, k = self._queries_and_keys(local, context)
        v = _positions(self.value(context if self.value_of == "context" else local))
        attended = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.gamma * attended.transpose(1, 2).reshape(local.shape)

    def relevance(self, local: Tensor, context: Tensor) -> Tensor:
        """How much each place of the patch looks at each place of the context: (B, H W, H' W'), rows sum to 1."""
        q, k = self._queries_and_keys(local, context)
        return (self.scale * q @ k.transpose(1, 2)).softmax(-1)

    def _queries_and_keys(self, local: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        self._check(local, context)
        q, k = _positions(self.query(local)), _positions(self.key(context))
        if self.whiten:
            q, k = q - q.mean(1, keepdim=True), k - k.mean(1, keepdim=True)
        return q, k

    def _check(self, local: Tensor, context: Tensor) -> None:
        for name, x in (("local", local), ("context", context)):
            if x.dim() != 4 or x.shape[1] != self.dim:
                raise UserError(f"the {name} map is {list(x.shape)}; it must be (batch, {self.dim}, height, width).")
        if len(local) != len(context):
            raise UserError(f"{len(local)} patches have {len(context)} contexts; give one for each.")
        if self.value_of == "local" and local.shape != context.shape:
            raise UserError(
                f"value='local' reads the patch {list(local.shape)} at places of the context {list(context.shape)}, so "
                "their sizes must agree; resize one, or use value='context'."
            )


class Concatenation(nn.Module):
    r"""The ablation's other way: what the patch and its context show, side by side, whatever resembles what.

    .. math:: \bar X = W [X^{local}, X^{context}]

    with a 1 x 1 convolution W that starts near 0, as the correlation's does. "Naive local-global feature concatenation"
    is all that the paper says of it (section 4.4); this is the smallest such form.

    Args:
        dim: channels C of both maps.

    Shapes:
        local and context (B, C, H, W), of one size; output the same.

    Raises:
        UserError: the sizes differ.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * dim, dim, 1, bias=False)
        nn.init.normal_(self.mix.weight, std=0.01)

    def forward(self, local: Tensor, context: Tensor) -> Tensor:
        """Both maps, mixed."""
        if local.shape != context.shape:
            raise UserError(
                f"the patch's map {list(local.shape)} and the context's {list(context.shape)} are laid side by side, "
                "so their sizes must agree; resize one."
            )
        mixed: Tensor = self.mix(torch.cat([local, context], 1))
        return mixed


def _positions(x: Tensor) -> Tensor:
    """A map (B, C, H, W) as a sequence (B, H W, C)."""
    return x.flatten(2).transpose(1, 2)
