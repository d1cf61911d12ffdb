r"""FCtL: a network that labels a patch while it looks at wider contexts of it.

One encoder's deepest map of the patch, :math:`X`, gathers from the maps :math:`U^t` of T contexts what resembles it;
what it gathers is mixed and added, and the decoder goes on as if nothing had happened:

.. math:: \bar X^t = \mathcal F_{lcc}(X, U^t), \qquad X' = X + \sum_t H^t \odot \bar X^t, \qquad
          y = \mathrm{dec}(X', \text{skips of the patch alone})

A context of scale 1 is the patch itself, so its stream is self-attention and costs no encoder. All gammas start at 0:
before training the network is its decoder on its encoder, of the patch alone.

=====================  ==============================================================================================
form                   what it is
=====================  ==============================================================================================
``encoder="vgg16"``    the published one, FCN-8s on VGG16 (`rsseglab.fctl.fcn8s`), maps of 508 px meet at 23 x 23
any other              an encoder and a decoder of `rsseglab.encoders` and `rsseglab.decoders`; maps meet at the
                       encoder's last level, on patches that are padded to a multiple of 32 px inside
=====================  ==============================================================================================

``streams`` says whose encoder sees the contexts: "shared", the patch's own, trained with it (joint training, and the
single stages of the staged one); "frozen", a copy for each, which is not trained (the published last stage).

Source:
    Li, Yang, Liu, Yu, He, "From Contexts to Locality", ICCV 2021, section 3.1 and figure 3; at which level maps meet,
    and what is frozen, as in the authors' public code (MIT), of which none is used here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsseglab.decoders import create_network
from rsseglab.errors import UserError
from rsseglab.fctl.contexts import EDGES, check_scales
from rsseglab.fctl.correlation import Concatenation, LocalityAwareCorrelation
from rsseglab.fctl.fcn8s import FCN8s
from rsseglab.fctl.fusion import ContextFusion

STREAMS = ("shared", "frozen")
CORRELATIONS = ("attention", "concatenation")
STRIDE_PX = 32  # of an encoder's last map, at most

Scale = float | str


class FCtL(nn.Module):
    """A patch's encoder and decoder, and in between what its contexts have to say; see the module.

    Args:
        encoder: "vgg16" for the published FCN-8s, or a name of `rsseglab.encoders`.
        contexts: scales, see `rsseglab.fctl.contexts`; 1 for the patch itself, "scene" for the whole scene. None at all
            is the baseline without contexts.
        classes: number of classes K.
        bands: number of input bands.
        decoder: a name of `rsseglab.decoders`; vgg16 has its own.
        correlation: "attention", or the ablation's "concatenation".
        value: of the attention, see `LocalityAwareCorrelation`.
        whiten: likewise.
        fusion: preset or weights of `ContextFusion`: "code", "paper", "constant" or "mean".
        streams: "shared" or "frozen".
        edge: how contexts are read past the scene's edge, see `rsseglab.fctl.contexts`; kept for those who read them.
        weights: of the encoder, see `rsseglab.encoders` and `FCN8s`.

    Raises:
        UserError: an option is unknown, a scale is none, or encoder and decoder do not go together.
    """

    #: Of a batch, beside the image: see `forward`.
    reads = ("contexts",)

    def __init__(
        self,
        encoder: str = "vgg16",
        contexts: Sequence[Scale] = (1, 2, 3),
        classes: int = 7,
        bands: int = 3,
        *,
        decoder: str = "fcn",
        correlation: str = "attention",
        value: str = "context",
        whiten: bool = False,
        fusion: str = "code",
        streams: str = "shared",
        edge: str = "pad",
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        for name, given, known in (
            ("correlation", correlation, CORRELATIONS),
            ("streams", streams, STREAMS),
            ("fusion", fusion, FUSIONS),
            ("edge", edge, EDGES),
        ):
            if given not in known:
                raise UserError(f"there is no {name} '{given}'; choose one of {', '.join(known)}.")
        check_scales(contexts)
        self.contexts, self.edge = tuple(contexts), edge
        if encoder == "vgg16":
            network: Any = FCN8s(bands, classes, weights)
            self.offset_px, self.stride_px = FCN8s.OFFSET_PX, 1
        else:
            if decoder == "dpt":
                raise UserError("dpt decodes tokens, and contexts are added to maps; choose another decoder, as fcn.")
            network = create_network(encoder, decoder, bands, classes, weights)
            self.offset_px, self.stride_px = 0, STRIDE_PX
        self.encoder, self.decoder, self.head = network.encoder, network.decoder, network.segmentation_head
        dim = self.encoder.out_channels[-1]
        self.correlations = nn.ModuleList(
            LocalityAwareCorrelation(dim, value, whiten) if correlation == "attention" else Concatenation(dim)
            for _ in self.contexts
        )
        self.fusion = ContextFusion(dim, len(self.contexts), **FUSIONS[fusion]) if self.contexts else None
        copies = [deepcopy(self.encoder) for _ in self.scales] if streams == "frozen" else []
        self.context_encoders = nn.ModuleList(copies).requires_grad_(False).eval()

    @property
    def scales(self) -> tuple[Scale, ...]:
        """Of the contexts that are read: all but the patch itself."""
        return tuple(scale for scale in self.contexts if scale != 1)

    def train(self, mode: bool = True) -> FCtL:
        """Frozen encoders stay in eval mode: their norms' statistics are frozen too."""
        super().train(mode)
        self.context_encoders.eval()
        return self

    def forward(self, local: Tensor, contexts: Tensor) -> Tensor:
        """Logits of patches.

        Args:
            local: normalised patches, (B, bands, h, w), of any size.
            contexts: normalised contexts of S = ``len(scales)`` scales, 0 without data: (B, S, bands, h', w').

        Returns:
            (B, K, h, w).
        """
        if contexts.dim() != 5 or contexts.shape[:2] != (len(local), len(self.scales)):
            raise UserError(
                f"contexts are {list(contexts.shape)}; they must be ({len(local)}, {len(self.scales)}, bands, height, "
                "width), one of each scale for each patch."
            )
        if self.context_encoders or not self.scales or contexts.shape[2:] != local.shape[1:]:
            return self.label(local, [self.look(i, contexts[:, i]) for i in range(len(self.scales))])
        # One batch of all: a batch norm in train mode then sees patches and contexts together, as its running
        # statistics do, by which both are normed later.
        maps = self._maps(self.encoder, torch.cat([local, *contexts.unbind(1)]))
        mine, wide = [m[: len(local)] for m in maps], maps[-1][len(local) :].chunk(len(self.scales))
        return self._decoded(mine, wide, local)

    def look(self, number: int, context: Tensor) -> Tensor:
        """The map (B, C, h, w) of contexts (B, bands, h', w') of scale ``scales[number]``."""
        if not self.context_encoders:
            return self._maps(self.encoder, context)[-1]
        with torch.no_grad():
            return self._maps(self.context_encoders[number], context)[-1]

    def label(self, local: Tensor, wide: Sequence[Tensor]) -> Tensor:
        """Logits (B, K, h, w) of patches (B, bands, h, w), given their contexts' maps from `look`."""
        return self._decoded(self._maps(self.encoder, local), wide, local)

    def _decoded(self, maps: list[Tensor], wide: Sequence[Tensor], local: Tensor) -> Tensor:
        """Logits of patches, from all maps of theirs and the deepest of their contexts."""
        if self.fusion is not None:
            maps[-1] = maps[-1] + self.fusion(self._gathered(maps[-1], wide))
        scores: Tensor = self.head(self.decoder(maps))
        (height, width), first = local.shape[-2:], self.offset_px
        return scores[:, :, first : first + height, first : first + width]

    def explain(self, local: Tensor, contexts: Tensor) -> tuple[list[Tensor], Tensor]:
        """Where patches look, and how much they take from which context.

        Returns:
            For each of the T contexts the relevance (B, h w, h' w') of its positions for the patch's; and the fusion's
            weights (T, B, C or 1, h or 1, w or 1).

        Raises:
            UserError: the network concatenates, or has no contexts.
        """
        if self.fusion is None or not all(isinstance(c, LocalityAwareCorrelation) for c in self.correlations):
            raise UserError("only attention over contexts tells where it looks; build the network with both.")
        with torch.no_grad():
            x = self._maps(self.encoder, local)[-1]
            wide = [self.look(i, contexts[:, i]) for i in range(len(self.scales))]
            sources = self._sources(x, wide)
            relevance = [c.relevance(x, u) for c, u in zip(self.correlations, sources, strict=True)]  # type: ignore[operator]
            return relevance, self.fusion.weights(self._gathered(x, wide))

    def load_baseline(self, earlier: nn.Module) -> None:
        """Take encoder, decoder and head of a network that was trained before, with or without contexts.

        Raises:
            UserError: it has another encoder or decoder.
        """
        parts = [("encoder", "encoder"), ("decoder", "decoder"), ("head", "segmentation_head")]
        for name, stock in parts:
            source = getattr(earlier, name, None) if hasattr(earlier, name) else getattr(earlier, stock, None)
            if source is None:
                raise UserError(f"the first stage has no {name}; give a checkpoint of this encoder and decoder.")
            try:
                getattr(self, name).load_state_dict(source.state_dict())
            except RuntimeError as error:
                raise UserError(f"the first stage has another {name}; give one of this encoder and decoder.") from error
        for copy in self.context_encoders:
            copy.load_state_dict(self.encoder.state_dict())

    def load_stages(self, stages: Mapping[Scale, FCtL]) -> None:
        """Take from networks of one context each: the encoder that saw it, and how the patch looks at it.

        The patch's own encoder, decoder and head are those of the first.

        Args:
            stages: a network for each scale.

        Raises:
            ValueError: a scale is none of the contexts.
            RuntimeError: a network has layers of other sizes.
        """
        self.load_baseline(next(iter(stages.values())))
        for scale, stage in stages.items():
            number = self.contexts.index(scale)
            self.correlations[number].load_state_dict(stage.correlations[0].state_dict())
            if self.context_encoders:
                self.context_encoders[self.scales.index(scale)].load_state_dict(stage.encoder.state_dict())

    def _maps(self, encoder: Any, image: Tensor) -> list[Tensor]:
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % self.stride_px, 0, -height % self.stride_px))
        return list(encoder(padded.contiguous(memory_format=torch.channels_last)))

    def _sources(self, x: Tensor, wide: Sequence[Tensor]) -> list[Tensor]:
        """The map that each context's stream looks at: the patch's own, or a wider one."""
        others = iter(wide)
        return [x if scale == 1 else next(others) for scale in self.contexts]

    def _gathered(self, x: Tensor, wide: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(self.correlations, self._sources(x, wide), strict=True)
        return [correlation(x, u.expand(len(x), -1, -1, -1)) for correlation, u in pairs]


FUSIONS: dict[str, dict[str, Any]] = {
    "code": {"preset": "code"},
    "paper": {"preset": "paper"},
    "constant": {"weights": "constant"},
    "mean": {"weights": "mean"},
}


def create_fctl(
    encoder: str,
    decoder: str,
    bands: int,
    classes: int,
    weights: str | Path | None = None,
    *,
    contexts: Sequence[Scale] = (1, 2, 3),
    stages: str = "joint",
    **options: Any,
) -> FCtL:
    """An `FCtL` by the arguments that `rsseglab.training.networks` has for all methods.

    Args:
        encoder: see `FCtL`, likewise for the others.
        decoder: of it.
        bands: of an image.
        classes: number of them.
        weights: of the encoder.
        contexts: scales.
        stages: how it is trained (`rsseglab.fctl.training`), which does not change what it is.
        **options: of `FCtL`.
    """
    return FCtL(encoder, contexts, classes, bands, decoder=decoder, weights=weights, **options)
