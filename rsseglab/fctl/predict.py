"""Label a whole scene by patches that look at their contexts, and write a GeoTIFF on its grid.

As cropping does, band by band and at a memory that does not grow with the scene's height; contexts are small reads,
and what the network makes of the whole scene is computed once.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from rsseglab.errors import UserError
from rsseglab.fctl.contexts import GLOBAL, Context, Contexts
from rsseglab.fctl.model import FCtL
from rsseglab.fctl.refinement import ContextualRefinement
from rsseglab.inference.crops import Cropping, crop_and_merge
from rsseglab.inference.predict import Prediction, pick_device, placement_tags, read_normalized, write_prediction
from rsseglab.scenes.raster import Window
from rsseglab.scenes.scene import Scene
from rsseglab.training.checkpoint import TrainedNetwork


def predict_contexts(
    trained: TrainedNetwork,
    scene: Scene,
    path: Path,
    cropping: Cropping,
    *,
    context_scene: Scene | None = None,
    probabilities: Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Prediction:
    """Label a whole scene by patches with contexts.

    Args:
        trained: with an `FCtL` or a `ContextualRefinement` network.
        scene: no smaller than a patch; a label is not needed.
        path: the GeoTIFF to write.
        cropping: patches and how they are merged.
        context_scene: where contexts are read instead, of the same size: a control of what they are worth.
        probabilities: a GeoTIFF to write class probabilities to, one float32 band a class.
        device: where to compute; a GPU if there is one.
        progress: whether to draw a progress bar.

    Raises:
        UserError: the network reads no contexts, the bands do not fit, the scene is smaller than a patch, the image is
            damaged, or the raster cannot be written.
    """
    if not isinstance(trained.network, FCtL | ContextualRefinement):
        raise UserError(f"the {trained.decoder} on {trained.encoder} reads no contexts; label by predict_scene.")
    trained.check_fits(scene)
    device = pick_device(device)
    trained.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    label = _Label(trained, context_scene or scene, cropping.window_px, device)

    def bands() -> Iterator[tuple[int, Tensor]]:
        title = f"labelling {scene.name}" if progress else None

        def read(row: int, stop: int) -> Tensor:
            return read_normalized(trained, scene, row, stop)

        yield from crop_and_merge(label, read, scene.height, scene.width, cropping, device, title)

    tags = {"contexts": ",".join(map(str, label.scales)), **placement_tags(cropping, scene)}
    return write_prediction(bands(), trained, scene, path, tags, probabilities, device)


class _Label:
    """A network on windows of a scene, whose contexts it reads there."""

    def __init__(self, trained: TrainedNetwork, scene: Scene, patch_px: int, device: torch.device) -> None:
        self.trained, self.device = trained, device
        self.network = trained.network
        self.scales: tuple[float | str, ...] = self.network.scales  # type: ignore[assignment]
        near = [scale for scale in self.scales if scale != GLOBAL]
        self.contexts = Contexts(scene, patch_px, near, self.network.edge)  # type: ignore[arg-type]

    def __call__(self, windows: Tensor, places: Sequence[Window]) -> Tensor:
        """Logits (B, K, h, w) of windows (B, bands, h, w) at their places."""
        read = [self.contexts.read(place) for place in places]
        near = iter(range(len(self.contexts.scales)))
        wide = []
        for number, scale in enumerate(self.scales):
            if scale == GLOBAL:
                wide.append(self.whole[number])
            else:
                k = next(near)
                wide.append(self._look(number, [contexts[k] for contexts in read]))
        logits: Tensor = self.network.label(windows, wide)  # type: ignore[operator]
        return logits

    @cached_property
    def whole(self) -> dict[int, Tensor]:
        """What the network makes of the whole scene, once."""
        where = [number for number, scale in enumerate(self.scales) if scale == GLOBAL]
        return {number: self._look(number, [self.contexts.whole]) for number in where}

    def _look(self, number: int, contexts: Sequence[Context]) -> Tensor:
        images = [
            self.trained.normalize(torch.from_numpy(pixels)) * torch.from_numpy(valid) for pixels, valid in contexts
        ]
        seen: Tensor = self.network.look(number, torch.stack(images).to(self.device))  # type: ignore[operator]
        return seen
