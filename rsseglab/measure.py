"""Seconds and peak memory of a piece of work."""

import ctypes
import gc
import threading
from contextlib import suppress
from time import perf_counter
from types import TracebackType
from typing import Self

import psutil
import torch


class Measure:
    """Context manager: how long a block takes, and how much memory above what stood before it.

    On a GPU the allocator's own peak; on the CPU the process's resident memory, sampled every 10 ms.

    Args:
        device: the device that works.

    Attributes:
        seconds: wall-clock time.
        peak_mib: peak memory less what stood when the block was entered, in MiB.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.seconds = self.peak_mib = 0.0

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            _give_back_freed_memory()
            self._process = psutil.Process()
            self._before = self._peak = self._process.memory_info().rss
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        self._start = perf_counter()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.01):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self._peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self._stop.set()
            self._thread.join()
        self.seconds = perf_counter() - self._start
        self.peak_mib = (self._peak - self._before) / 2**20


def _give_back_freed_memory() -> None:
    # Memory that earlier work has freed stays with the process, and would hide what is taken next.
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
