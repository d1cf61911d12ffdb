"""A self-describing checkpoint: the network, and all that predicting with it needs."""

import pickle
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rsseglab.errors import UserError
from rsseglab.scenes.scene import LabelClass, Scene
from rsseglab.training.networks import build_network


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with what it was trained on.

    Attributes:
        network: from a normalised image (B, bands, H, W) to logits (B, K, H, W).
        bands: names of the bands, in order.
        mean: shape (bands), in the image's units.
        std: shape (bands), in the image's units.
        classes: class k of the logits is ``classes[k]``.
        ignore_values: numbers in the label files that are no class.
        crop_px: side of the crops it was trained on; None for whole scenes.
        gsd_m: ground sampling distance in metres, where known.
        encoder: its name.
        decoder: its name.
        method: whose network it is, see `rsseglab.training.networks`.
    """

    network: nn.Module
    bands: tuple[str, ...]
    mean: Tensor
    std: Tensor
    classes: tuple[LabelClass, ...]
    ignore_values: tuple[int, ...]
    crop_px: int | None
    gsd_m: float | None
    encoder: str
    decoder: str
    method: str = "stock"

    def check_fits(self, scene: Scene) -> None:
        """Whether the network can label a scene.

        Raises:
            UserError: the scene has another number of bands, or its bands have other names.
        """
        wanted = f"{', '.join(self.bands[:8])}{', ...' if len(self.bands) > 8 else ''}"
        if scene.count != len(self.bands):
            raise UserError(
                f"scene {scene.name} has {scene.count} bands but the checkpoint was trained on {len(self.bands)} "
                f"({wanted}); give the same bands (one file a band: in a manifest, see --data), or train on these."
            )
        # A file without names of bands is taken at its word.
        named = not any(name.startswith("band_") for name in (*self.bands, *scene.bands))
        if named and [n.lower() for n in scene.bands] != [n.lower() for n in self.bands]:
            raise UserError(
                f"scene {scene.name} has the bands {', '.join(scene.bands)} but the checkpoint was trained on "
                f"{wanted}; give the same bands in the same order."
            )
        if scene.gsd_m and self.gsd_m and not 2 / 3 < scene.gsd_m / self.gsd_m < 3 / 2:
            warnings.warn(
                f"scene {scene.name} has pixels of {scene.gsd_m} m, the checkpoint was trained on {self.gsd_m} m: "
                "expect a worse map, or resample the scene",
                stacklevel=2,
            )

    def normalize(self, image: Tensor) -> Tensor:
        """(image - mean) / std of an image (bands, H, W)."""
        mean, std = self.mean.to(image.device), self.std.to(image.device)
        return (image - mean[:, None, None]) / std[:, None, None]


def describe(scene: Scene, mean: Tensor, std: Tensor, crop_px: int | None) -> dict[str, Any]:
    """What a checkpoint keeps beside the network, in plain types that ``weights_only`` loading admits."""
    return {
        "bands": list(scene.bands),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "classes": [{**asdict(c), "color": list(c.color)} for c in scene.classes],
        "ignore_values": list(scene.ignore_values),
        "crop_px": crop_px,
        "gsd_m": scene.gsd_m,
    }


def load_state(path: Path) -> dict[str, Any]:
    """Load what a checkpoint file holds, without running any code in it.

    Raises:
        UserError: the file is missing or is no checkpoint of rsseglab.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        metadata = state["hyper_parameters"]["metadata"]
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}; train one with 'rsseglab train'.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name the file in it, such as {path / 'best.ckpt'}.") from None
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
    ) as error:
        raise _not_ours(path) from error
    if not isinstance(metadata, dict) or not isinstance(state.get("state_dict"), dict):
        raise _not_ours(path)
    return state


def load_checkpoint(path: str | Path) -> TrainedNetwork:
    """Load a checkpoint that `rsseglab train` wrote, in eval mode on the CPU.

    Args:
        path: ``best.ckpt`` or ``last.ckpt`` of a run.

    Raises:
        UserError: the file is missing or is no checkpoint of rsseglab.
    """
    path = Path(path)
    state = load_state(path)
    try:
        h = state["hyper_parameters"]
        # Checkpoints of before methods had names are of stock networks.
        method, options = h.get("method", "stock"), h.get("options")
        network = build_network(method, h["backbone"], h["model"], h["in_channels"], h["num_classes"], None, options)
        return trained_network(state, network)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        raise _not_ours(path) from error


def trained_network(state: dict[str, Any], network: nn.Module) -> TrainedNetwork:
    """A network with the weights of a checkpoint, in eval mode, and what the checkpoint says of it.

    Args:
        state: from `load_state`.
        network: built as the checkpoint says.
    """
    h, meta = state["hyper_parameters"], state["hyper_parameters"]["metadata"]
    parameters = {k.removeprefix("model."): v for k, v in state["state_dict"].items() if k.startswith("model.")}
    network.load_state_dict(parameters)
    return TrainedNetwork(
        network=network.eval(),
        bands=tuple(meta["bands"]),
        mean=torch.tensor(meta["mean"]),
        std=torch.tensor(meta["std"]),
        classes=_classes(meta["classes"]),
        ignore_values=tuple(meta["ignore_values"]),
        crop_px=meta["crop_px"],
        gsd_m=meta["gsd_m"],
        encoder=h["backbone"],
        decoder=h["model"],
        method=h.get("method", "stock"),
    )


def _classes(entries: Sequence[dict[str, Any]]) -> tuple[LabelClass, ...]:
    return tuple(LabelClass(c["name"], c["value"], tuple(c["color"])) for c in entries)


def _not_ours(path: Path) -> UserError:
    return UserError(f"{path} is not a checkpoint of rsseglab; give best.ckpt or last.ckpt of an 'rsseglab train' run.")
