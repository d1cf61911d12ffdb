"""A LightningModule that trains any encoder with any decoder on crops of scenes."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchgeo.trainers import SemanticSegmentationTask
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from rsseglab.errors import UserError
from rsseglab.scenes.scene import IGNORE_INDEX
from rsseglab.spatial import Layout, SceneTensor, cut, from_tile
from rsseglab.training.losses import SegmentationLoss
from rsseglab.training.networks import build_network

POWERS = {"poly": 0.9, "linear": 1.0}


class SceneSegmentationTask(SemanticSegmentationTask):
    """torchgeo's segmentation task over every encoder and decoder, with losses that ignore what does not count.

    What torchgeo's task does is inherited: set-up, hyper-parameters, prediction. What changes: a method makes the
    network (`rsseglab.training.networks`); a window may be cut in tiles that are spread over ranks; the loss is a mean
    over the pixels that count, the optimiser AdamW under a schedule by step, the metric that selects the mean IoU over
    classes; and each step's random numbers (dropout) depend on the seed and the step alone, so that a resumed run
    repeats the one that was not interrupted.

    Args:
        model: name of the decoder.
        backbone: name of the encoder.
        weights: of the encoder, see `rsseglab.encoders`.
        in_channels: number of bands.
        num_classes: number of classes K.
        loss: "ce", "dice", "ce+dice" or "focal".
        ignore_index: label of the pixels that do not count.
        lr: highest learning rate.
        weight_decay: of AdamW.
        schedule: "cosine", "poly" (power 0.9) or "linear", all down to 0 at the last step.
        steps: length of the run.
        warmup_steps: steps over which the rate grows linearly.
        seed: of the random numbers of a step.
        method: whose network it is, a key of `rsseglab.training.networks.METHODS`.
        options: of the method, in plain types.
        offload: whether what the backward pass needs waits in the computer's memory instead of the GPU's.
        metadata: what predicting needs to know beside the network (bands, normalisation, classes, GSD); kept in the
            checkpoint.
    """

    monitor = "val_mean_iou"
    mode = "max"
    #: The tiles that each window is cut in; None where it stays whole.
    layout: Layout | None = None
    #: Number of the data group: dropout differs between groups, and not within one.
    group = 0

    def __init__(
        self,
        model: str = "unet",
        backbone: str = "resnet18",
        weights: str | Path | None = None,
        in_channels: int = 3,
        num_classes: int = 2,
        loss: str = "ce+dice",
        ignore_index: int = IGNORE_INDEX,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        schedule: str = "cosine",
        steps: int = 1000,
        warmup_steps: int = 20,
        seed: int = 0,
        method: str = "stock",
        options: dict[str, Any] | None = None,
        offload: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            model=model,  # type: ignore[arg-type]
            backbone=backbone,
            weights=str(weights) if weights else None,
            in_channels=in_channels,
            num_classes=num_classes,
            loss=loss,  # type: ignore[arg-type]
            ignore_index=ignore_index,
            lr=lr,
        )

    def configure_models(self) -> None:
        """Build the network, in the memory format that convolutions run fastest in."""
        h = self.hparams
        weights = self.weights if isinstance(self.weights, str) else None
        network = build_network(
            h["method"], h["backbone"], h["model"], h["in_channels"], h["num_classes"], weights, h["options"]
        )
        self.model = network.to(memory_format=torch.channels_last)

    def configure_losses(self) -> None:
        """Build the loss."""
        self.criterion = SegmentationLoss(self.hparams["loss"], self.hparams["ignore_index"])

    def configure_metrics(self) -> None:
        """Overall accuracy and mean IoU over classes, of the pixels that count."""
        kwargs = {"num_classes": self.hparams["num_classes"], "ignore_index": self.hparams["ignore_index"]}
        metrics = MetricCollection(
            {
                "overall_accuracy": MulticlassAccuracy(average="micro", **kwargs),
                "mean_iou": MulticlassJaccardIndex(average="macro", **kwargs),
            }
        )
        self.train_metrics = metrics.clone(prefix="train_")
        self.val_metrics = metrics.clone(prefix="val_")
        self.test_metrics = metrics.clone(prefix="test_")

    def configure_optimizers(self) -> Any:
        """AdamW, its rate scheduled by step."""
        h = self.hparams
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = AdamW(trained, lr=h["lr"], weight_decay=h["weight_decay"])
        schedule = LambdaLR(optimizer, lambda s: rate(s, h["steps"], h["warmup_steps"], h["schedule"]))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def forward(self, image: Tensor, *beside: Tensor) -> Tensor:
        """Logits (B, K, H, W) of a normalised image (B, bands, H, W), and of what else the network reads."""
        logits: Tensor = self.model(image.contiguous(memory_format=torch.channels_last), *beside)
        return logits

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step."""
        torch.manual_seed((self.hparams["seed"] * 1_000_003 + self.global_step) * 1_009 + self.group)

    def training_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The loss of a step.

        Raises:
            UserError: the loss is not finite; or a map is pooled to one pixel, of which batch norm has no variance.
        """
        try:
            with torch.autograd.graph.save_on_cpu(pin_memory=True) if self.hparams["offload"] else nullcontext():
                loss = self._step("train", batch)
        except ValueError as error:
            if "Expected more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"{self.hparams['model']} pools a crop to one pixel, whose batch norm needs two; give a batch size "
                "of 2 or more."
            ) from error
        if not torch.isfinite(loss):
            raise UserError(f"the loss is {loss.item()} at step {self.global_step}; lower the learning rate.")
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count what is right."""
        self._step("val", batch)

    def _step(self, stage: str, batch: Any) -> Tensor:
        image, label = self._scene(batch, "image"), self._scene(batch, "mask")
        logits, loss = self._judged(image, label, batch)
        metrics = getattr(self, f"{stage}_metrics")
        for its_logits, its_label in zip(_tiles(logits), _tiles(label), strict=True):
            metrics.update(its_logits.detach(), its_label)
        size = len(batch["image"])
        self.log_dict(metrics, batch_size=size, on_step=False, on_epoch=True)
        self.log(f"{stage}_loss", loss.detach(), batch_size=size)
        return loss

    def _judged(self, image: Tensor, label: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits and loss; a network whose loss is of more than its logits has a ``criterion`` of its own."""
        if hasattr(self.model, "criterion"):
            refined = self.model.refine(image.contiguous(memory_format=torch.channels_last))
            beside = [batch[key] for key in getattr(self.model.criterion, "reads", ()) if key in batch]
            return refined.logits, self.model.criterion(refined, label, *beside)
        logits = self(image, *(batch[key] for key in getattr(self.model, "reads", ())))
        return logits, self.criterion(logits, label)

    def _scene(self, batch: Any, key: str) -> Tensor:
        """A batch's images or labels; cut, where a layout says so."""
        if self.layout is None:
            return batch[key]
        if self.layout.mesh is None:
            return cut(batch[key], self.layout)
        height, width = batch["size"][0].tolist()
        return from_tile(batch[key], self.layout, height, width)


def _tiles(x: Tensor) -> Sequence[Tensor]:
    """What this process holds of a tensor."""
    return [tile for tile in x.tiles if tile.numel()] if isinstance(x, SceneTensor) else [x]


def rate(step: int, steps: int, warmup_steps: int, schedule: str) -> float:
    r"""Learning rate at a step, as a share of the highest.

    .. math:: r(s) = \min\!\left(1, \frac{s + 1}{w}\right) \cdot
              \begin{cases} \frac{1}{2}(1 + \cos \pi t) & \text{cosine} \\ (1 - t)^{0.9} & \text{poly} \\
              1 - t & \text{linear} \end{cases}, \qquad t = s / S
    """
    t = min(step / max(steps, 1), 1.0)
    decay = 0.5 * (1 + math.cos(math.pi * t)) if schedule == "cosine" else (1 - t) ** POWERS[schedule]
    return decay * min(1.0, (step + 1) / max(warmup_steps, 1))
