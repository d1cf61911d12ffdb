"""Refine the masks of any segmenter: its probabilities are the image that a refinement network reads.

A segmenter labels whole scenes as it always does; its class probabilities, merged, are the crude mask. Of these scenes
of masks patches and contexts are read as of any other, so that training and labelling are those of `FCtL`.

A refinement that learns from masks of scenes that the segmenter has learned by heart finds nothing to mend. The paper's
remedy: train it on masks of a segmenter that was stopped early (after 20 of 50 epochs; here: one that was trained for
fewer steps, its schedule ending with them), and use it on those of the one that was not.

Source:
    Li, Yang, Liu, Yu, He, "From Contexts to Locality", ICCV 2021, sections 3.2 and 4.2.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rsseglab.errors import UserError
from rsseglab.fctl.contexts import check_size
from rsseglab.fctl.predict import predict_contexts
from rsseglab.fctl.training import fit_contexts
from rsseglab.inference.crops import Cropping
from rsseglab.inference.predict import Prediction
from rsseglab.scenes.scene import Scene
from rsseglab.scenes.views import with_image
from rsseglab.training.checkpoint import TrainedNetwork
from rsseglab.training.fit import TrainConfig, TrainResult, check_in_one_process

#: Labels a scene at a path, and writes its class probabilities to the other.
Segment = Callable[[Scene, Path, Path], Prediction]


def mask_of(scene: Scene, probabilities: Path) -> Scene:
    """A scene whose image is its class probabilities, one band a class."""
    return with_image(scene, probabilities, [c.name for c in scene.classes])


def fit_refinement(
    train: Sequence[Scene],
    val: Sequence[Scene],
    segment: Segment,
    config: TrainConfig,
    folder: Path,
    resume: bool = False,
    progress: bool = True,
    masks: str = "masks",
) -> TrainResult:
    """Train a refinement network on the masks of a segmenter, preferably one that was stopped early.

    Args:
        train: scenes to train on.
        val: scenes to select by.
        segment: labels them.
        config: the run, of method "refinement".
        folder: where checkpoints, log and masks go.
        resume: go on from ``last.ckpt``; masks that are there are not made again.
        progress: whether to draw a progress bar.
        masks: name of the masks' subfolder: another one for each segmenter, so that a run which is resumed never goes
            on with another's.

    Raises:
        UserError: as `fit_contexts`, or a scene can't be labelled.
        KeyboardInterrupt: Ctrl-C; ``last.ckpt`` stays.
    """
    check_in_one_process(config)
    if not resume and (folder / "last.ckpt").is_file():  # before its masks are overwritten
        raise UserError(f"{folder} holds a run already; give --resume to go on with it, or another --out.")

    def mask(scene: Scene) -> Scene:
        path = folder / masks / f"{scene.name}.tif"
        if not (resume and path.is_file()):
            segment(scene, folder / masks / "labels" / f"{scene.name}.tif", path)
        return mask_of(scene, path)

    train_masks, val_masks = ([mask(scene) for scene in scenes] for scenes in (train, val))
    return fit_contexts(train_masks, val_masks, config, folder, raw=True, resume=resume, progress=progress)


def predict_refined(
    refiner: TrainedNetwork,
    scene: Scene,
    path: Path,
    segment: Segment,
    cropping: Cropping,
    *,
    probabilities: Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Prediction:
    """Label a scene by a segmenter, refine its masks, and write a GeoTIFF on the scene's grid.

    The crude mask lies on disk in between, next to the result, so that memory does not grow with the scene.

    Args:
        refiner: with a `rsseglab.fctl.refinement.ContextualRefinement` network.
        scene: of any size, no smaller than a patch; a label is not needed.
        path: the GeoTIFF to write.
        segment: labels the scene and gives probabilities.
        cropping: patches of the refinement and how they are merged.
        probabilities: a GeoTIFF to write refined probabilities to.
        device: where to compute; a GPU if there is one.
        progress: whether to draw a progress bar.

    Returns:
        Seconds and memory are those of both together.

    Raises:
        UserError: the classes are others, or as `predict_contexts`.
    """
    check_size(scene, cropping.window_px)  # before a segmenter has spent minutes on it
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        crude = Path(folder) / "probabilities.tif"
        before = segment(scene, Path(folder) / "labels.tif", crude)
        mask = with_image(scene, crude, refiner.bands)  # the scene's own classes may be others than the network's
        done = predict_contexts(
            refiner, mask, path, cropping, probabilities=probabilities, device=device, progress=progress
        )
    return Prediction(done.path, done.probabilities, before.seconds + done.seconds, max(before.peak_mib, done.peak_mib))
