"""What a training run will take: hours, memory and disk, told before it starts.

An estimate. One step's operations and one step's memory are counted on ``meta`` tensors, which have shapes and no
values; the rate is measured on this machine, with one small step of the very network. Not in it: reading scenes,
optimiser steps, gradients that ranks exchange, and what kernels and the allocator take beside their tensors.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from rsseglab.inference.estimate import MetaMemory, free_mib
from rsseglab.inference.predict import pick_device
from rsseglab.rest.cost import flop_counter
from rsseglab.scenes.scene import Scene
from rsseglab.training.fit import TrainConfig
from rsseglab.training.networks import build_network
from rsseglab.training.ranks import Grid

BATCH = 2  # the least that every network takes: a map pooled to one pixel has no variance in a batch of one
SMALL_PX = 128  # side of the crops of the step that is timed
STATE_BYTES = 8  # of AdamW for a parameter: two float32


@dataclass(frozen=True)
class Budget:
    """An estimate of a run.

    Attributes:
        training_flops: of all steps.
        labelling_flops: of all validations, and of the test scenes.
        flops_per_s: of this machine's worker, measured.
        workers: that share the work.
        memory_mib: of one worker.
        disk_mib: of checkpoints and maps.
    """

    training_flops: float
    labelling_flops: float
    flops_per_s: float
    workers: int
    memory_mib: float
    disk_mib: float

    @property
    def hours(self) -> float:
        """Training, validations and the test scenes."""
        return (self.training_flops + self.labelling_flops) / self.flops_per_s / self.workers / 3600


def budget(config: TrainConfig, train: Sequence[Scene], val: Sequence[Scene], test: Sequence[Scene]) -> Budget:
    """Estimate a run.

    Args:
        config: the run, on crops.
        train: its scenes, for their bands and classes.
        val: scenes of each validation.
        test: scenes that are labelled once in the end, with half of a window shared with its neighbours at most.
    """
    side = config.crop_px or max(max(scene.height, scene.width) for scene in train)
    device, grid = pick_device(), Grid.parse(config.spatial)
    workers = 1 if config.in_process else grid.parts
    training = forward = memory = disk = 0.0
    seconds = flops = 0.0
    for options in _stages(config):
        network = _network(config, options, train[0])
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        parameters = sum(p.numel() for p in network.parameters())
        inputs = _inputs(network, train[0].count, min(side, SMALL_PX))
        flops += _count(network, inputs, training=True)
        seconds += _seconds(network, inputs, device, config.precision)
        inputs = _inputs(network, train[0].count, side)
        training += _count(network, inputs, training=True) / BATCH * config.batch_size * config.steps
        forward = _count(network, inputs, training=False) / BATCH / side**2
        gradients = trained * 4
        activations = (_peak(network, inputs) - gradients) / BATCH * config.batch_size
        standing = parameters * 4 + gradients + trained * STATE_BYTES
        memory = max(memory, standing + max(0.0, activations) / grid.parts * (1 if workers > 1 else grid.parts))
        disk += 2 * (parameters * 4 + trained * STATE_BYTES)  # best.ckpt and last.ckpt
    pixels = [sum(scene.height * scene.width for scene in scenes) for scenes in (val, test)]
    labelled = pixels[0] * -(-config.steps // config.val_every) * len(_stages(config)) + 4 * pixels[1]
    return Budget(training, forward * labelled, flops / seconds, workers, memory / 2**20, (disk + pixels[1]) / 2**20)


def _stages(config: TrainConfig) -> list[dict[str, Any]]:
    """Options of the networks that are trained one after the other; FCtL's published stages are several."""
    options = config.options or {}
    if options.get("stages") != "published":
        return [options]
    wide = [scale for scale in options["contexts"] if scale != 1]
    return [
        *({**options, "contexts": [scale], "streams": "shared"} for scale in wide),
        {**options, "streams": "frozen"},
    ]


def _network(config: TrainConfig, options: dict[str, Any], scene: Scene) -> nn.Module:
    """As it is trained, but with random weights."""
    network = build_network(
        config.method, config.encoder, config.decoder, scene.count, len(scene.classes), None, options
    )
    freeze = getattr(network, "freeze_early_stages", None)
    if config.freeze_early and freeze:
        freeze()
    return network.train()


def _inputs(network: nn.Module, bands: int, side_px: int) -> list[tuple[int, ...]]:
    """Shapes of what the network reads: crops, and contexts where it reads any."""
    contexts = [(BATCH, len(network.scales), bands, side_px, side_px)] if hasattr(network, "scales") else []  # type: ignore[arg-type]
    return [(BATCH, bands, side_px, side_px), *contexts]


def _step(network: nn.Module, weights: dict[str, Tensor], inputs: Sequence[Tensor]) -> None:
    """Forward and backward, without the loss."""
    functional_call(network, weights, tuple(inputs)).sum().backward()


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """The network's parameters and buffers on ``meta``, the former to be trained as they are."""
    parameters = {n: p.to("meta").detach().requires_grad_(p.requires_grad) for n, p in network.named_parameters()}
    return parameters | {name: buffer.to("meta") for name, buffer in network.named_buffers()}


def _count(network: nn.Module, shapes: Sequence[tuple[int, ...]], training: bool) -> float:
    """Operations of one forward, and backward where it trains."""
    weights, inputs = _weights(network), [torch.empty(shape, device="meta") for shape in shapes]
    with flop_counter() as counter, _Attention(training) as attention:
        if training:
            _step(network, weights, inputs)
        else:
            with torch.no_grad():
                functional_call(network, weights, tuple(inputs))
    return float(counter.get_total_flops() + attention.flops)


def _peak(network: nn.Module, shapes: Sequence[tuple[int, ...]]) -> float:
    """Bytes of one forward and backward at its worst moment, gradients included, weights not."""
    weights = _weights(network)
    count = MetaMemory(network)
    count.held.update({tensor.untyped_storage()._cdata: 0 for tensor in weights.values()})
    with count, _Attention(training=True):
        _step(network, weights, [torch.empty(shape, device="meta") for shape in shapes])
    return float(count.peak)


def _seconds(network: nn.Module, shapes: Sequence[tuple[int, ...]], device: torch.device, precision: str) -> float:
    """Of a small step on the device that will train: the least of three after a first, as others may use it too."""
    network = network.to(device)
    mixed = device.type == "cuda" and precision != "32-true"
    taken = []
    with torch.random.fork_rng(), torch.autocast("cuda", torch.bfloat16) if mixed else nullcontext():
        for _ in range(4):
            start = time.perf_counter()
            network(*(torch.randn(shape, device=device) for shape in shapes)).sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - start)
            network.zero_grad()
    return min(taken[1:])


class _Attention(TorchFunctionMode):
    """On ``meta``, attention would hold its N x M scores; here it holds and counts what the fused kernels do.

    Attributes:
        flops: of all attentions so far, backward included where it trains: five products of N x M in the place of two.
    """

    def __init__(self, training: bool) -> None:
        super().__init__()
        self.training, self.flops = training, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        names = ("query", "key", "value")
        query, key, value = (args[k] if len(args) > k else kwargs[name] for k, name in enumerate(names))
        self.flops += 2 * query.numel() * key.shape[-2] + 2 * query[..., 0].numel() * value.shape[-2] * value.shape[-1]
        self.flops += int(2.5 * 4 * query.numel() * key.shape[-2]) if self.training else 0
        # Of the output's shape, and hangs on all three.
        return query.sum(-1, keepdim=True) + key.mean((-1, -2), keepdim=True) + value.mean(-2, keepdim=True)


def describe(name: str, its: Budget, out: Path) -> str:
    """The estimate in words, beside what is free.

    Args:
        name: of the run.
        its: estimate.
        out: folder of checkpoints and maps.
    """
    device = pick_device()
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free = psutil.disk_usage(str(place)).free / 2**20
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    workers = f", over {its.workers} workers like it" if its.workers > 1 else ""
    return (
        f"{name}, an estimate before it starts:\n"
        f"  time    {_hours(its.hours)} ({(its.training_flops + its.labelling_flops) / 1e15:.3g} PFLOP at "
        f"{its.flops_per_s / 1e9:.3g} GFLOP/s, measured just now on {kind}{workers}; reading not included)\n"
        f"  memory  {_size(its.memory_mib)} a worker ({_size(free_mib(device))} free)\n"
        f"  disk    {_size(its.disk_mib)} for checkpoints and maps ({_size(free)} free), beside the data"
    )


def _hours(hours: float) -> str:
    return f"{hours:.3g} hours" if hours >= 1 else f"{60 * hours:.2g} minutes"


def _size(mib: float) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"
