"""REST: any encoder and decoder on a scene that is spread over workers, and four ways for its tiles to meet.

==============  ===================================================================================
``none``        each tile alone, as when a scene is cropped
``spim``        encoder and decoder on each tile alone; tiles meet in SPIM's attention (the paper)
``exact``       one scene, whatever the number of tiles: halos, sums and keys are exchanged
``exact+spim``  the same, with SPIM behind the encoder
==============  ===================================================================================

On a scene in one tile the first two and the last two are the same function; on more, ``none`` and ``spim`` give
another answer for another cut, ``exact`` and ``exact+spim`` do not.

Where SPIM sits: as a side branch, what the decoder sees of a level passes through it and the encoder goes on without
(Swin and VMamba in the public code, and here every encoder but ConvNeXt); inline, its output is added to the stage's
and the next stage sees the sum (ConvNeXt). Other placements were not found in the public code.

Source:
    Chen et al., "REST", TPAMI 48:1, 2026, doi:10.1109/TPAMI.2025.3609767; placement as in the authors' public code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rsseglab.decoders import create_network
from rsseglab.errors import UserError
from rsseglab.rest.spim import SPIM
from rsseglab.spatial import SceneTensor, apart, together
from rsseglab.spatial.apart import evened
from rsseglab.training.networks import load_weights_of

INTERACTIONS = ("none", "spim", "exact", "exact+spim")
STRIDES = (4, 8, 16, 32)
MULTIPLE_PX = 32


class REST(nn.Module):
    """A stock network on a whole scene, tiles interacting as asked for; see the module's table.

    Args:
        encoder: name, see `rsseglab.encoders`.
        decoder: name, see `rsseglab.decoders`.
        classes: number of classes K.
        interaction: one of `INTERACTIONS`.
        bands: number of input bands.
        weights: of the encoder, see `rsseglab.encoders`.
        heads: of SPIM; ``"world"`` for as many as there are tiles, see `SPIM`.
        strides: the levels that get a SPIM, by their stride in px; all four as published. Stride 4 has 87 % of the
            attention (`rsseglab.rest.cost`); without exchange there, mIoU was 0.07 lower (ablation, third party).
        residual: of SPIM, "published" or "plain".
        pool: SPIM's pooling of keys and values by stride, such as ``{4: 4}``; none when not given.
        exchange: of SPIM, "all_to_all" or "ring".
        placement: "side" or "inline"; inline for ConvNeXt, else side, when not given. Inline SPIMs drop a sample's FFN
            with a probability of 0.3 in training, as published.
        decode: "tile" (published) or "exact": under ``spim``, whether the decoder too works on each tile alone.
        checkpointing: whether encoder, SPIM and decoder are computed again in the backward pass instead of kept.
        wavelengths_um: of the bands, see `rsseglab.decoders.create_network`.
        gsd_m: of the scenes, likewise.

    Shapes:
        input (B, bands, H, W) of any H and W, a plain tensor or a `SceneTensor`; output logits (B, K, H, W) of the
        same kind. Zeros are added below and to the right up to a multiple of 32 px (tile by tile where tiles are
        alone), and taken away again.

    Raises:
        UserError: a name is unknown, or things do not go together.
    """

    def __init__(
        self,
        encoder: str,
        decoder: str,
        classes: int,
        interaction: str = "spim",
        *,
        bands: int = 3,
        weights: str | None = None,
        heads: int | str = 8,
        strides: Sequence[int] = STRIDES,
        residual: str = "published",
        pool: Mapping[int, int] | None = None,
        exchange: str = "all_to_all",
        placement: str | None = None,
        decode: str = "tile",
        checkpointing: bool = False,
        wavelengths_um: Sequence[float] | None = None,
        gsd_m: float | None = None,
    ) -> None:
        super().__init__()
        placement = placement or ("inline" if "convnext" in encoder else "side")
        for name, value, known in (
            ("interaction", interaction, INTERACTIONS),
            ("placement", placement, ("side", "inline")),
            ("decode", decode, ("tile", "exact")),
        ):
            if value not in known:
                raise UserError(f"unknown {name} '{value}'; choose one of {', '.join(known)}.")
        if unknown := sorted({*strides, *(pool or {})} - set(STRIDES)):
            raise UserError(f"there are no maps of stride {unknown[0]}; choose among {', '.join(map(str, STRIDES))}.")
        if unused := sorted(stride for stride, px in (pool or {}).items() if px > 1 and stride not in strides):
            raise UserError(f"pool is given for stride {unused[0]}, which gets no SPIM; add it to strides.")
        self.interaction, self.placement, self.decode = interaction, placement, decode
        self.checkpointing = checkpointing
        self.bands = bands
        self.network: Any = create_network(
            encoder, decoder, bands, classes, weights, wavelengths_um=wavelengths_um, gsd_m=gsd_m
        )
        levels = _levels(cast(nn.Module, self.network.encoder), bands)
        self.alone = interaction in ("none", "spim")
        self.spims = nn.ModuleDict()
        drop_path = 0.3 if placement == "inline" else 0.0
        if "spim" in interaction:
            for level, (stride, channels) in enumerate(levels):
                if stride in strides and channels:
                    pooled = int((pool or {}).get(stride, 1))
                    self.spims[str(level)] = SPIM(
                        channels, heads, residual=residual, pool=pooled, exchange=exchange, drop_path=drop_path
                    )
            if not self.spims:
                raise UserError(
                    f"encoder '{encoder}' has no map of strides {tuple(strides)}; give others, of {STRIDES}."
                )
        if self.spims and placement == "inline":
            self._put_inline(encoder, len(levels))
        self._frozen: list[nn.Module] = []

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of an image (B, bands, H, W), plain or cut."""
        height, width = image.shape[2:]
        down, right = (-(-n // MULTIPLE_PX) * MULTIPLE_PX - n for n in (height, width))
        x = F.pad(image, (0, right, 0, down)) if down or right else image
        alone = self.alone and isinstance(x, SceneTensor)
        x = apart(cast(SceneTensor, x), MULTIPLE_PX) if alone else x
        features = self._computed(self.network.encoder, x)
        maps, *prefix = features if isinstance(features, tuple) else (features,)
        maps = [self._interact(level, y) for level, y in enumerate(maps)]
        if alone and self.decode == "exact":
            if prefix:
                raise UserError("prefix tokens belong to a tile each, so decode='exact' is not for dpt; give 'tile'.")
            maps, alone = [evened(together(y)) for y in maps], False
        logits = self._computed(self._decode, maps, *prefix)
        logits = (together(logits) if alone else logits)[..., :height, :width]
        return evened(logits) if isinstance(logits, SceneTensor) else logits  # cut as a label of this size is

    def _decode(self, maps: list[Tensor], *prefix: Any) -> Tensor:
        logits: Tensor = self.network.segmentation_head(self.network.decoder(maps, *prefix))
        return logits

    def _interact(self, level: int, y: Tensor) -> Tensor:
        """SPIM as a side branch: on what the decoder sees of a level."""
        if self.placement == "inline" or str(level) not in self.spims:
            return y
        return self._computed(partial(_meet, cast(SPIM, self.spims[str(level)])), y)

    def _put_inline(self, encoder: str, levels: int) -> None:
        """SPIM behind a stage of the encoder, so that the next stage sees the sum of both."""
        stages = list(getattr(getattr(self.network.encoder, "model", None), "return_layers", []))
        if not stages or getattr(self.network.encoder, "_is_channel_last", False):
            raise UserError(
                f"encoder '{encoder}' has no stages between maps (B, C, H, W), so SPIM can't sit inline; "
                "give placement='side'."
            )
        for level, spim in self.spims.items():
            stage = self.network.encoder.model[stages[int(level) - levels + len(stages)]]
            stage.register_forward_hook(partial(_inline, cast(SPIM, spim)))

    def _computed(self, function: Any, *args: Any) -> Any:
        if not (self.checkpointing and torch.is_grad_enabled()):
            return function(*args)
        contexts = lambda: (nullcontext(), _statistics_kept(self))  # noqa: E731
        return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)

    def load_baseline(self, network: nn.Module) -> None:
        """Take encoder and decoder of a network trained without SPIM, the first of the two stages.

        Of a REST that has SPIMs as this one has, these are taken too.

        Raises:
            UserError: it is another encoder or decoder.
        """
        if isinstance(network, REST) and network.spims and self.spims:
            load_weights_of(self, network)
        else:
            load_weights_of(self.network, network.network if isinstance(network, REST) else network)

    def freeze_early_stages(self) -> None:
        """Freeze all of the encoder but what only its deepest map is made of: the second of the two stages.

        Frozen batch norms keep their statistics, and frozen stages drop nothing. With patch embedding and stages 1 to 3
        frozen, as published for Swin and ConvNeXt, what trains is the last stage, SPIM and the decoder.

        Raises:
            UserError: all of the encoder would be frozen, as that of a plain ViT under a pyramid.
        """
        encoder = self.network.encoder
        with _without_hooks(encoder):  # SPIM inline is not asked
            early = _early_parameters(encoder, self.bands)
        if len(early) == len(list(encoder.parameters())):
            raise UserError(
                "each of the encoder's maps is made by all of its blocks, so none is early; leave --freeze-early out, "
                "or choose an encoder of stages."
            )
        for parameter in early:
            parameter.requires_grad_(False)
        ours = [(module, list(module.parameters())) for module in encoder.modules()]
        self._frozen = [m for m, its in ours if its and not any(p.requires_grad for p in its)]
        self.train(self.training)

    def train(self, mode: bool = True) -> REST:
        """As torch's; what is frozen stays in eval mode, dropout within it too."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


def create_rest(
    encoder: str, decoder: str, bands: int, classes: int, weights: str | None = None, **options: Any
) -> REST:
    """REST by the arguments of `rsseglab.decoders.create_network`, and its own."""
    return REST(encoder, decoder, classes, bands=bands, weights=weights, **options)


def _meet(spim: SPIM, y: Tensor) -> Tensor:
    """SPIM over one scene, also where the map is a batch of tiles."""
    if isinstance(y, SceneTensor) and y.axes[0].dim == 0:
        return apart(spim(together(y)))
    out: Tensor = spim(y)
    return out


def _inline(spim: SPIM, stage: nn.Module, inputs: Any, y: Tensor) -> Tensor:
    return y + _meet(spim, y)


@contextmanager
def _without_hooks(encoder: nn.Module) -> Iterator[None]:
    """What is done behind a module's own forward is left out."""
    hooks = [(module._forward_hooks, dict(module._forward_hooks)) for module in encoder.modules()]
    try:
        for now, _ in hooks:
            now.clear()
        yield
    finally:
        for now, before in hooks:
            now.update(before)


def _maps(encoder: nn.Module, bands: int) -> list[Tensor]:
    """The maps of a small image, whatever weights and mode the encoder is in."""
    training = encoder.training
    encoder.eval()
    parameter = next(encoder.parameters())
    image = torch.zeros(1, bands, 64, 64, dtype=parameter.dtype, device=parameter.device)
    features = encoder(image)
    encoder.train(training)
    return features[0] if isinstance(features, tuple) else list(features)


def _levels(encoder: nn.Module, bands: int) -> list[tuple[int, int]]:
    """Stride in px and channels of each map of an encoder."""
    with torch.no_grad():
        return [(64 // y.shape[-1], y.shape[1]) for y in _maps(encoder, bands)]


def _early_parameters(encoder: nn.Module, bands: int) -> list[nn.Parameter]:
    """The parameters that any map but the last depends on, found by asking autograd."""
    parameters = list(encoder.parameters())
    with torch.enable_grad():
        shallow = sum(y.sum() for y in _maps(encoder, bands)[:-1])
        grads = torch.autograd.grad(shallow, parameters, allow_unused=True)  # type: ignore[arg-type]
    return [p for p, grad in zip(parameters, grads, strict=True) if grad is not None]


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """What is computed a second time does not count a second time in batch norms' running statistics."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
            norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
