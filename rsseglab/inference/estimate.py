"""How much memory labelling a scene whole will take, known before it starts.

The network runs on ``meta`` tensors of the true size, which have shapes and no values: seconds, whatever the scene.
Every storage counts from the operation that makes it to the death of its last tensor, so what is found is what the
network's own code holds at its worst moment. Over ranks one of them is played, by the code that ranks run.

What is not seen is what kernels and the allocator take beside their tensors. Measured with `predict_whole` on the CPU
(U-Net on ResNet-18 and on EfficientNet-Lite0, SegFormer on MiT-B0; 1024 x 1024 and 2048 x 2048 px; U-Net on Lite0, 6447
x 4438 px) the process took 60 to 260 MiB more than the tensors. So the estimate is a tenth and 256 MiB above what is
counted: 1.07 to 1.34 times what was measured.
"""

import weakref
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rsseglab.spatial import Layout, SceneTensor
from rsseglab.spatial.cut import map_axes

MARGIN, MARGIN_MIB = 1.1, 256  # kernels' workspaces and the allocator, see above


def estimate_mib(
    network: nn.Module, bands: int, height: int, width: int, layout: Layout | None = None, device: str = "cpu"
) -> float:
    """Peak memory of labelling a scene whole, above what stands once the network is loaded.

    Args:
        network: from an image (B, bands, H, W) to logits (B, K, H, W), in eval mode; it is not changed.
        bands: of the image.
        height: of the image that the network sees, in px.
        width: of the image that the network sees, in px.
        layout: the tiles, one a worker; one in all if not given. The worker with most pixels, and that with most heads
            of an attention (the last one) are played; the dearer counts.
        device: the kind of device that will work, as keys are passed round on "cpu" and gathered elsewhere.

    Returns:
        MiB of one worker, the margin included.
    """
    layout = layout or Layout(1)
    ranks = {_busiest(layout, height, width), layout.parts - 1}
    return max(_estimate_mib(network, bands, height, width, layout, device, rank) for rank in ranks)


def _estimate_mib(
    network: nn.Module, bands: int, height: int, width: int, layout: Layout, device: str, rank: int
) -> float:
    """The estimate for one worker."""
    _, _, rows, cols = layout.windows(height, width)[rank]
    with torch.inference_mode(False), torch.no_grad():  # in inference mode operations hide what they are made of
        count = MetaMemory(network)
        with count:
            image = torch.empty(1, bands, rows, cols, device="meta", memory_format=torch.channels_last)
            if layout.parts > 1:
                played = Layout(layout.rows, layout.cols, _Mesh(rank, layout.parts, device))  # type: ignore[arg-type]
                axes = map_axes(played, height, width, (2, 3))
                image = SceneTensor([image], played, (1, bands, height, width), axes)
            with _FusedAttention():
                functional_call(network, count.weights, (image,))
    labels = rows * cols  # a byte each
    return (count.peak + labels) / 2**20 * MARGIN + MARGIN_MIB


def free_mib(device: torch.device) -> float:
    """Memory that is free on a device, in MiB; on the CPU the machine's."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + cached) / 2**20
    return psutil.virtual_memory().available / 2**20


def _busiest(layout: Layout, height: int, width: int) -> int:
    """The tile with most pixels, its borders with others included."""

    def pixels(tile: int) -> int:
        row, col, rows, cols = layout.windows(height, width)[tile]
        across, down = (row > 0) + (row + rows < height), (col > 0) + (col + cols < width)
        return (rows + across) * (cols + down)

    return max(range(layout.parts), key=pixels)


class _Mesh:
    """Stands for the mesh of a rank that is only played: on meta tensors nothing is sent."""

    ndim = 1

    def __init__(self, rank: int, ranks: int, device: str) -> None:
        self.rank, self.ranks, self.device_type = rank, ranks, device

    def size(self) -> int:
        return self.ranks

    def get_local_rank(self) -> int:
        return self.rank

    def get_group(self) -> None:
        return None


class MetaMemory(TorchDispatchMode):
    """Bytes of meta storages that live, and the most of them at a time; the network's weights stand and do not count.

    Attributes:
        weights: of the network, by name, on meta.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        named = (*network.named_parameters(), *network.named_buffers())
        self.weights = {name: tensor.to("meta") for name, tensor in named}
        self.held = {tensor.untyped_storage()._cdata: 0 for tensor in self.weights.values()}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._hold(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.held:
            self.held[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._release, storage._cdata)

    def _release(self, key: int) -> None:
        self.now -= self.held.pop(key)


class _FusedAttention(TorchFunctionMode):
    """On meta, attention would hold its N x M scores; the fused kernels of real devices hold the output alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if SceneTensor in types and func in (F.scaled_dot_product_attention, F.multi_head_attention_forward):
            with self:  # the rule comes back here with tiles
                return SceneTensor.__torch_function__(func, types, args, kwargs)
        if func is F.scaled_dot_product_attention:
            query, value = (args[k] if len(args) > k else kwargs[name] for k, name in ((0, "query"), (2, "value")))
            if query.dim() == 4 and not kwargs.get("dropout_p") and not args[4:5]:
                return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **kwargs)
