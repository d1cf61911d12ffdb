"""Label a scene by cropping: windows through the network, logits blended where windows overlap.

Rows are finished from top to bottom: once no later window touches a row, its logits are divided by its weights,
handed on and freed. So memory grows with a scene's width and a window's height, not with the scene's height.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from rsseglab.errors import UserError
from rsseglab.inference.windows import BLENDS, PLACEMENTS, blend_weights, stride_px, window_starts
from rsseglab.scenes.raster import Window

MERGES = ("logits", "probabilities")
TINY = 1e-30  # a probability that has a logarithm
Label = Callable[[Tensor, Sequence[Window]], Tensor]  # of windows (B, bands, h, w), at places on the scene


@dataclass(frozen=True)
class Cropping:
    """How a scene is cut in windows and put together again.

    Attributes:
        window_px: side of a window; most networks need a multiple of 32.
        overlap: shared part of a window's side, from 0 to less than 1.
        blend: "flat", "linear", "hann" or "gaussian", see `blend_weights`.
        placement: "flush" or "even", see `window_starts`.
        batch_size: windows at a time.
        merge: what is blended: "logits", or "probabilities".
        step_px: what the side is a multiple of, as most networks want it; 1 for networks that take any.
    """

    window_px: int = 512
    overlap: float = 0.5
    blend: str = "hann"
    placement: str = "flush"
    batch_size: int = 4
    merge: str = "logits"
    step_px: int = 32

    def __post_init__(self) -> None:
        stride_px(self.window_px, self.overlap)
        if not 0 < self.window_px < 2**16 or self.window_px % self.step_px:
            raise UserError(f"window is {self.window_px} px; it must be a multiple of {self.step_px}, such as 512.")
        if self.batch_size < 1:
            raise UserError(f"batch size is {self.batch_size}; it must be at least 1.")
        for name, known in (("blend", BLENDS), ("placement", PLACEMENTS), ("merge", MERGES)):
            if getattr(self, name) not in known:
                raise UserError(f"unknown {name} '{getattr(self, name)}'; choose one of {', '.join(known)}.")

    @property
    def stride_px(self) -> int:
        """Distance between two windows."""
        return stride_px(self.window_px, self.overlap)

    def starts(self, length: int) -> list[int]:
        """First pixels of the windows along an axis of the given length."""
        return window_starts(length, self.window_px, self.stride_px, self.placement)


def crop_and_merge(
    network: nn.Module | Label,
    read: Callable[[int, int], Tensor],
    height: int,
    width: int,
    cropping: Cropping,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> Iterator[tuple[int, Tensor]]:
    r"""Logits of a scene, a band of finished rows at a time.

    .. math:: y_p = \sum_{w \ni p} \omega_w(p)\, f(x|_w)_p \Big/ \sum_{w \ni p} \omega_w(p)

    or, where probabilities are blended, the logarithm of such a mean of :math:`\mathrm{softmax} f`.

    Args:
        network: from an image (B, bands, h, w) to logits (B, K, h, w), in eval mode; or a function of such windows
            and their places, for networks that look at more of the scene.
        read: ``read(row, stop)`` gives the normalised rows, shape (bands, stop - row, width); read once each, but
            for those that overlapping windows share.
        height: of the scene, in px.
        width: of the scene, in px.
        cropping: windows and blending; a scene smaller than a window is padded with zeros below and to the right.
        device: where the network is.
        progress: title of a progress bar; none when not given.

    Yields:
        The first row of the band, and its logits of shape (K, rows, width) on the device.
    """
    side = cropping.window_px
    rows, cols = cropping.starts(height), cropping.starts(width)
    weights = blend_weights(cropping.blend, side).to(device)
    padded = max(width, side)
    norm = torch.zeros(side, padded, device=device)  # sum of weights of a row of windows, the same for each
    for col in cols:
        norm[:, col : col + side] += weights
    logits: Tensor | None = None  # (K, side, padded): weighted sums of the rows that windows still touch
    total = torch.zeros(side, padded, device=device)
    done = torch.device(device)
    with tqdm(total=len(rows) * len(cols), desc=progress, unit="window", disable=progress is None) as bar:
        for row, following in zip(rows, [*rows[1:], max(height, side)], strict=True):
            strip = _padded(read(row, min(row + side, height)), side, padded)
            for i in range(0, len(cols), cropping.batch_size):
                batch = cols[i : i + cropping.batch_size]
                places = [Window(row, col, side, side) for col in batch]
                outputs = _forward(network, strip, places, done)
                outputs = outputs.softmax(1) if cropping.merge == "probabilities" else outputs
                if logits is None:
                    logits = outputs.new_zeros(outputs.shape[1], side, padded)
                for col, output in zip(batch, outputs, strict=True):
                    logits[:, :, col : col + side].addcmul_(output, weights)
                bar.update(len(batch))
            total += norm
            assert logits is not None
            finished = following - row
            band = (logits[:, :finished] / total[:finished])[:, : height - row, :width]
            yield row, band.clamp(min=TINY).log() if cropping.merge == "probabilities" else band
            logits, total = _shifted(logits, finished), _shifted(total, finished)


def _forward(network: nn.Module | Label, strip: Tensor, places: Sequence[Window], device: torch.device) -> Tensor:
    windows = torch.stack([strip[:, :, place.col : place.col + place.width] for place in places]).to(device)
    windows = windows.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        output: Tensor = network(windows) if isinstance(network, nn.Module) else network(windows, places)
    return output


def _padded(strip: Tensor, height: int, width: int) -> Tensor:
    down, right = height - strip.shape[1], width - strip.shape[2]
    return nn.functional.pad(strip, (0, right, 0, down)) if down or right else strip


def _shifted(rows: Tensor, by: int) -> Tensor:
    """Rows move up by so many, and zeros come in from below; rows lie in the last but one dimension."""
    moved = torch.zeros_like(rows)
    moved[..., : rows.shape[-2] - by, :] = rows[..., by:, :]
    return moved
