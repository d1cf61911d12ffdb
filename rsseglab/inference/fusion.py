"""Two ways to give a crop the whole scene: label the scene downsampled, or fuse a global and a local stream.

`predict_decimated` labels a downsampled scene ("global inference"), all context and no detail. `GlobalLocal` is a
two-stream network after GLNet: one stream sees the whole scene small, the other a crop in full resolution.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsseglab.decoders import create_network
from rsseglab.errors import UserError
from rsseglab.inference.crops import Cropping, crop_and_merge
from rsseglab.inference.predict import (
    Prediction,
    pick_device,
    placement_tags,
    read_normalized,
    write_prediction,
)
from rsseglab.scenes.raster import BLOCK_PX, Window
from rsseglab.scenes.scene import Scene
from rsseglab.scenes.views import decimated, thumbnail
from rsseglab.training.checkpoint import TrainedNetwork

Bands = Iterator[tuple[int, Tensor]]


class GlobalLocal(nn.Module):
    r"""A global stream on the whole scene downsampled, a local one on a crop, and what they share.

    With :math:`g_l` the maps of the global encoder, :math:`f_l` those of the local one, and :math:`[\cdot]_b` the part
    of a global map that shows the crop (see `cut_out`), the local decoder is given

    .. math:: \hat f_l = f_l + W_l [g_l]_b \quad \text{at each level } l,
              \qquad y = \text{head}\big(\text{dec}(\hat f) \,\|\, [\text{dec}_g(g)]_b\big)

    where the head's convolution reads the last maps of both streams concatenated. :math:`W_l` (1 x 1 convolutions)
    start at 0, so that training starts from two streams that meet in the head alone.

    This is our own code, written from the idea: a *baseline in the manner of* GLNet and no reproduction of it.
    As there: two streams of one architecture, the crop's part of the global maps given to the local stream at each
    level of the encoder, a convolution over the concatenated last maps. Simplified, so that it can be compared with
    the other methods at the same steps, pixels and loss:

    * Trained end to end by one loss on the fused answer. Theirs goes in stages (global, then local with it, then
      global again), with a loss a stream and a weak coupling of the two streams' maps.
    * Maps are shared from global to local only. The other way needs the maps of *all* crops of a scene, merged:
      from one crop the global stream would get a patch on a blank. A step would then see a whole scene, not as
      many pixels as the other methods', and a scene's global maps could not be computed once for all crops.
    * The global maps are added through :math:`W_l`, which is a convolution over both concatenated with the local
      map's part fixed to the identity: pretrained encoders stay as they are at the start.
    * Any encoder and decoder instead of an FPN on ResNet-50.

    The streams share no parameters, so there are twice as many as in a cropped baseline, and the thumbnail's
    global_px x global_px pixels are seen beside each crop: both belong in a comparison's table.

    On twin scenes (`rsseglab.scenes.twins`) the thumbnail shows both twins alike where a scene's height and width are
    multiples of ``detail_px * global_px``; the crop has to see the key itself.

    Args:
        encoder: name, see `rsseglab.encoders`.
        decoder: name, see `rsseglab.decoders`; all but "dpt" and "fcn".
        classes: number of classes K.
        bands: number of input bands.
        global_px: side of the thumbnail, a multiple of 32.
        weights: of both encoders, see `rsseglab.encoders`.

    Raises:
        UserError: the names do not go together, or the side is no multiple of 32.

    Source:
        Chen, Jiang, Wang, Cui, Qian, "Collaborative global-local networks for memory-efficient segmentation of
        ultra-high resolution images", CVPR 2019.
    """

    #: Of a batch, beside the image: see `forward`.
    reads = ("scene", "box")

    def __init__(
        self,
        encoder: str,
        decoder: str,
        classes: int,
        bands: int = 3,
        *,
        global_px: int = 256,
        weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        if global_px <= 0 or global_px % 32:
            raise UserError(f"global_px is {global_px}; it must be a multiple of 32, such as 256.")
        if decoder in ("dpt", "fcn"):
            raise UserError(f"decoder '{decoder}' has no last feature map to fuse; choose another, such as unet.")
        self.global_px = global_px
        near: Any = create_network(encoder, decoder, bands, classes, weights)
        far: Any = create_network(encoder, decoder, bands, classes, weights)
        self.local_encoder: nn.Module = near.encoder
        self.local_decoder: nn.Module = near.decoder
        self.global_encoder: nn.Module = far.encoder
        self.global_decoder: nn.Module = far.decoder
        self.head: nn.Sequential = near.segmentation_head
        own = near.segmentation_head[0]
        self.head[0] = nn.Conv2d(2 * own.in_channels, classes, own.kernel_size, padding=own.padding)
        smp.base.initialization.initialize_head(self.head)
        channels: Sequence[int] = near.encoder.out_channels
        # Level 0 is the image itself, and some encoders give an empty map at stride 2.
        self.levels = [level for level, count in enumerate(channels) if level > 0 and count > 0]
        self.mixes = nn.ModuleList(nn.Conv2d(channels[level], channels[level], 1) for level in self.levels)
        for mix in self.mixes.parameters():
            nn.init.zeros_(mix)

    def look(self, scene_small: Tensor) -> list[Tensor]:
        """The global stream's maps, those of the encoder's levels that are shared and then the decoder's last.

        Args:
            scene_small: the normalised thumbnail, shape (B, bands, global_px, global_px).
        """
        maps = self.global_encoder(scene_small.contiguous(memory_format=torch.channels_last))
        last: Tensor = self.global_decoder(maps)
        return [*(maps[level] for level in self.levels), last]

    def label(self, crop: Tensor, maps: Sequence[Tensor], box: Tensor) -> Tensor:
        """The local stream, given the global one's maps.

        Args:
            crop: normalised, shape (B, bands, h, w).
            maps: from `look`, of B scenes or of one.
            box: the crop's place, see `cut_out`; shape (B, 4).

        Returns:
            Logits of the crop, shape (B, K, h, w).
        """
        features = list(self.local_encoder(crop.contiguous(memory_format=torch.channels_last)))
        for level, mix, shared in zip(self.levels, self.mixes, maps[:-1], strict=True):
            features[level] = features[level] + mix(cut_out(shared, box, features[level].shape[-2:]))
        last: Tensor = self.local_decoder(features)
        logits: Tensor = self.head(torch.cat([last, cut_out(maps[-1], box, last.shape[-2:])], dim=1))
        return logits

    def forward(self, crop: Tensor, scene_small: Tensor, box: Tensor) -> Tensor:
        """Logits (B, K, h, w) of a crop (B, bands, h, w), given the scene (B, bands, n, n) and its place (B, 4)."""
        return self.label(crop, self.look(scene_small), box)


def cut_out(maps: Tensor, box: Tensor, size: Sequence[int]) -> Tensor:
    r"""The part of a map of a whole scene that lies in a box, resampled to another size.

    Pixel i of n rows of the part is the map bilinearly interpolated at the middle of the ground it covers,

    .. math:: \text{top} + \frac{i + \frac{1}{2}}{n} (\text{bottom} - \text{top}),

    a fraction of the scene's height, where pixel j of the map's m rows has its middle at :math:`(j + \frac{1}{2}) / m`;
    columns likewise. Nothing is rounded to the map's pixels. Past the outermost middles the map goes on as it ends.

    Args:
        maps: shape (B, C, m, m'), or one for all boxes, (1, C, m, m').
        box: top, left, bottom, right as fractions of the scene's height and width, shape (B, 4); may reach past it.
        size: rows and columns of the part.

    Returns:
        Shape (B, C, \*size).
    """
    B, (height, width) = len(box), size
    wide = torch.promote_types(maps.dtype, torch.float32)  # a bfloat16 has too few digits for a place
    top, left, bottom, right = box.to(wide)[:, :, None].unbind(1)  # (B, 1) each
    down, across = (torch.arange(n, dtype=wide, device=box.device) for n in size)
    rows = top + (down + 0.5) / height * (bottom - top)  # (B, height)
    cols = left + (across + 0.5) / width * (right - left)  # (B, width)
    places = [cols[:, None, :].expand(B, height, width), rows[:, :, None].expand(B, height, width)]
    grid = 2 * torch.stack(places, dim=-1) - 1  # grid_sample's -1 and 1 are the scene's edges
    shared = maps.to(wide).expand(B, -1, -1, -1)
    return F.grid_sample(shared, grid, padding_mode="border", align_corners=False).to(maps.dtype)


def window_box(row: float, col: float, height: int, width: int, scene: Scene) -> tuple[float, float, float, float]:
    """Top, left, bottom and right of a window as fractions of a scene."""
    return row / scene.height, col / scene.width, (row + height) / scene.height, (col + width) / scene.width


def scene_thumbnail(trained: TrainedNetwork, scene: Scene, side_px: int) -> Tensor:
    """A scene's thumbnail as the network wants it, shape (1, bands, side_px, side_px); 0 where there is no data."""
    pixels, valid = (torch.from_numpy(part) for part in thumbnail(scene, side_px))
    return (trained.normalize(pixels) * valid)[None]


def predict_fusion(
    trained: TrainedNetwork,
    scene: Scene,
    path: Path,
    cropping: Cropping,
    *,
    probabilities: Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Prediction:
    """Label a whole scene by crops that are given the whole scene, and write a GeoTIFF on its grid.

    The global stream runs once; then all is as in `rsseglab.inference.predict.predict_scene`, whose arguments these
    are.

    Args:
        trained: with a `GlobalLocal` network.
        scene: of any size; a label is not needed.
        path: the GeoTIFF to write.
        cropping: windows and blending.
        probabilities: a GeoTIFF to write class probabilities to.
        device: where to compute; a GPU if there is one.
        progress: whether to draw a progress bar.

    Raises:
        UserError: the network has no global stream, the bands do not fit, the image is damaged, or the raster cannot
            be written.
    """
    if not isinstance(trained.network, GlobalLocal):
        raise UserError(f"the {trained.decoder} on {trained.encoder} has no global stream; label by predict_scene.")
    trained.check_fits(scene)
    device = pick_device(device)
    network = trained.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def read(row: int, stop: int) -> Tensor:
        return read_normalized(trained, scene, row, stop)

    def bands() -> Bands:
        with torch.no_grad():
            maps = network.look(scene_thumbnail(trained, scene, network.global_px).to(device))

        def label(windows: Tensor, places: Sequence[Window]) -> Tensor:
            box = windows.new_tensor([window_box(*place, scene) for place in places])
            return network.label(windows, maps, box)

        title = f"labelling {scene.name}" if progress else None
        yield from crop_and_merge(label, read, scene.height, scene.width, cropping, device, title)

    tags = {"global_px": str(network.global_px), **placement_tags(cropping, scene)}
    return write_prediction(bands(), trained, scene, path, tags, probabilities, device)


def predict_decimated(
    trained: TrainedNetwork,
    scene: Scene,
    factor: int,
    path: Path,
    cropping: Cropping | None = None,
    *,
    probabilities: Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Prediction:
    """Label a scene downsampled ("global inference"), and write a GeoTIFF on the full scene's grid.

    The logits of the decimated scene (`rsseglab.scenes.views.decimated`) are brought back by bilinear interpolation,
    a band of rows at a time; memory grows with the decimated scene. A network sees context factor times as wide, and
    nothing that is finer than a block: on twin scenes with a factor of ``detail_px`` both twins get the same answer.

    Args:
        trained: on scenes decimated by the same factor.
        scene: of any size, in full resolution; a label is not needed.
        factor: side of the block that becomes a pixel.
        path: the GeoTIFF to write.
        cropping: windows on the decimated scene; the whole of it at once when not given.
        probabilities: a GeoTIFF to write class probabilities to, one float32 band a class.
        device: where to compute; a GPU if there is one.
        progress: whether to draw a progress bar; only with ``cropping``.

    Raises:
        UserError: the factor is less than 1, the bands do not fit, the image is damaged, or the raster cannot be
            written.
    """
    small = decimated(scene, factor)
    trained.check_fits(small)
    device = pick_device(device)
    network = trained.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def read(row: int, stop: int) -> Tensor:
        return read_normalized(trained, small, row, stop)

    def bands() -> Bands:
        if cropping is None:
            logits = _whole(network, read, small, device)
        else:
            title = f"labelling {scene.name}" if progress else None
            merged = crop_and_merge(network, read, small.height, small.width, cropping, device, title)
            logits = torch.cat([band for _, band in merged], dim=1)
        yield from upsampled_bands(logits, factor, scene.height, scene.width)

    tags = {"factor": str(factor)} | ({} if cropping is None else _scaled_tags(cropping, small, factor))
    return write_prediction(bands(), trained, scene, path, tags, probabilities, device)


def _whole(network: nn.Module, read: Callable[[int, int], Tensor], scene: Scene, device: torch.device) -> Tensor:
    """Logits (K, height, width) of a scene in one piece, padded to multiples of 32 px."""
    image = F.pad(read(0, scene.height), (0, -scene.width % 32, 0, -scene.height % 32))
    with torch.no_grad():
        logits: Tensor = network(image[None].to(device).contiguous(memory_format=torch.channels_last))
    return logits[0, :, : scene.height, : scene.width]


def upsampled_bands(logits: Tensor, factor: int, height: int, width: int) -> Bands:
    r"""Logits of a decimated scene at full resolution, a band of rows at a time.

    Bilinear between the middles of the blocks: pixel i lies at :math:`(i + \frac{1}{2}) / f - \frac{1}{2}` of the
    decimated scene, and beyond the first and last middle the outermost logits go on.

    Args:
        logits: shape (K, ceil(height / factor), ceil(width / factor)).
        factor: side of a block, in px.
        height: of the scene, in px.
        width: of the scene, in px.

    Yields:
        The first row of the band, and its logits of shape (K, rows, width).
    """
    step = max(1, BLOCK_PX // factor)
    around = F.pad(logits[None], (0, 0, 1, 1), mode="replicate")  # a row above and one below are neighbours' in a band
    for row in range(0, logits.shape[1], step):
        rows = around[:, :, row : row + step + 2]
        band = F.interpolate(rows, scale_factor=factor, mode="bilinear", align_corners=False)[0]
        first = row * factor
        yield first, band[:, factor:-factor, :width][:, : height - first]


def _scaled_tags(cropping: Cropping, small: Scene, factor: int) -> dict[str, str]:
    """Where the windows of a decimated scene lie in the full one."""
    starts = {"row_starts": cropping.starts(small.height), "col_starts": cropping.starts(small.width)}
    scaled = {key: ",".join(str(start * factor) for start in values) for key, values in starts.items()}
    return {"window_px": str(cropping.window_px * factor), "blend": cropping.blend, **scaled}
