"""How each method trains and labels by crops: the one place that knows all of them.

A method is named by a run's configuration and by its checkpoint, see `rsseglab.training.networks.METHODS`. Stock
networks and REST see crops; FCtL sees crops with contexts; a refinement sees the masks of another checkpoint; PENet
sees clicks.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from rsseglab.errors import UserError
from rsseglab.fctl.masks import Segment, fit_refinement, predict_refined
from rsseglab.fctl.predict import predict_contexts
from rsseglab.fctl.training import fit_fctl
from rsseglab.inference.crops import Cropping
from rsseglab.inference.predict import Prediction, predict_scene
from rsseglab.penet.training import fit_points
from rsseglab.scenes.scene import Scene
from rsseglab.training.checkpoint import TrainedNetwork, load_checkpoint
from rsseglab.training.fit import TrainConfig, TrainResult, fit
from rsseglab.training.networks import ANY_SIZE


def fit_method(
    train: Sequence[Scene],
    val: Sequence[Scene],
    config: TrainConfig,
    folder: Path,
    resume: bool = False,
    progress: bool = True,
    segmenter: Path | None = None,
    grown: Mapping[Scene, Scene] | None = None,
) -> TrainResult:
    """Train a network as its method is trained.

    Args:
        train: scenes to train on.
        val: scenes to select by.
        config: the run.
        folder: where checkpoints and the log go.
        resume: go on from ``last.ckpt``.
        progress: whether to draw progress bars.
        segmenter: checkpoint whose masks a refinement learns to mend.
        grown: for a training scene, whose label is clicks, the one with the label that they have grown to.

    Raises:
        UserError: as the method's own function; a segmenter is missing, or nobody has a use for it, or it labels
            other classes.
    """
    if (segmenter is None) == (config.method == "refinement"):
        raise UserError(
            "method refinement mends the masks of another network; name its checkpoint with --segmenter."
            if segmenter is None
            else f"method {config.method} mends no masks; leave --segmenter out, or give --method refinement."
        )
    if segmenter is not None:
        earlier = load_checkpoint(segmenter)
        for scene in (*train, *val):
            if (names := [c.name for c in scene.classes]) != (its := [c.name for c in earlier.classes]):
                raise UserError(
                    f"{segmenter} labels {', '.join(its)}, and scene {scene.name} has {', '.join(names)}; name a "
                    "checkpoint that was trained on these classes."
                )
        segment, masks = segment_by(earlier, progress=progress), f"masks_{digest(segmenter)[:12]}"
        return fit_refinement(train, val, segment, config, folder, resume, progress, masks)
    if config.method == "penet":
        return fit_points(train, val, config, folder, resume, progress, grown)
    how = fit_fctl if config.method == "fctl" else fit
    return how(train, val, config, folder, resume, progress)


def digest(path: Path) -> str:
    """SHA-256 of a file: which checkpoint it is, whatever its name."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cropping_of(trained: TrainedNetwork, window_px: int | None = None, **how: object) -> Cropping:
    """Windows for a network: of the side that it was trained on, if no other is given."""
    side = window_px or trained.crop_px or 512
    return Cropping(side, step_px=1 if trained.method in ANY_SIZE else 32, **how)  # type: ignore[arg-type]


def check_pair(trained: TrainedNetwork, refiner: TrainedNetwork | None) -> None:
    """Whether one labels, and the other, if any, refines its masks.

    Raises:
        UserError: they do not.
    """
    if trained.method == "refinement":
        raise UserError("a refinement mends the masks of another network: give that as --checkpoint, this as --refine.")
    if refiner is None:
        return
    if refiner.method != "refinement":
        raise UserError(f"a network of method {refiner.method} refines no masks; give one of method refinement.")
    if refiner.bands != (names := tuple(c.name for c in trained.classes)):
        raise UserError(
            f"the refinement mends masks of {', '.join(refiner.bands)}, not of {', '.join(names)}; give one that was "
            "trained on this data set."
        )


def predict_by_crops(
    trained: TrainedNetwork,
    scene: Scene,
    path: Path,
    cropping: Cropping,
    *,
    refiner: TrainedNetwork | None = None,
    refining: Cropping | None = None,
    probabilities: Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Prediction:
    """Label a scene by crops, with contexts where the network reads any, and refine its masks where asked to.

    Args:
        trained: a network of any method but a refinement.
        scene: of any size; no smaller than a patch for networks that read contexts.
        path: the GeoTIFF to write.
        cropping: windows and blending.
        refiner: a network of method "refinement".
        refining: its windows and blending; half of a window's side overlapping if not given.
        probabilities: a GeoTIFF to write class probabilities to.
        device: where to compute; a GPU if there is one.
        progress: whether to draw progress bars.

    Raises:
        UserError: as `predict_scene` and `predict_contexts`; or a refinement is given alone, or is none.
    """
    check_pair(trained, refiner)
    if refiner is None:
        how = predict_contexts if trained.method == "fctl" else predict_scene
        return how(trained, scene, path, cropping, probabilities=probabilities, device=device, progress=progress)
    segment = segment_by(trained, cropping, device, progress)
    return predict_refined(
        refiner, scene, path, segment, refining or cropping_of(refiner),
        probabilities=probabilities, device=device, progress=progress,
    )  # fmt: skip


def segment_by(
    trained: TrainedNetwork,
    cropping: Cropping | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Segment:
    """A network as those see it who refine its masks."""

    def segment(scene: Scene, path: Path, probabilities: Path) -> Prediction:
        windows = cropping or cropping_of(trained)
        return predict_by_crops(
            trained, scene, path, windows, probabilities=probabilities, device=device, progress=progress
        )

    return segment
