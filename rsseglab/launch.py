"""Start ranks on this machine, where ``torchrun`` has not: processes that run one function together, and end together.

A rank finds its place as under ``torchrun``: in the process group and in the environment variables.
"""

import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing as mp

from rsseglab.errors import UserError

TIMEOUT = timedelta(minutes=30)  # of a rank that waits for another, which may have much to read
SAID = 16_000  # characters of an error: a pipe that nobody reads yet holds 64 KiB
GRACE_S = 10  # for a rank that is told to end, to clean up
#: What ranks that train or label import, imported before they are forked.
LIBRARIES = ["torch._dynamo", "lightning.pytorch", "segmentation_models_pytorch", "torchgeo.datamodules"]


def under_torchrun() -> bool:
    """Whether this process is a rank among others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def backend(device_type: str) -> str:
    """The process group's, for "cuda" or "cpu"."""
    return "nccl" if device_type == "cuda" else "gloo"


def launch(
    ranks: int, device_type: str, function: Callable[..., Any], *args: Any, way_out: str = "use more machines"
) -> Any:
    """Run a function on so many ranks of this machine; if one fails all are ended, and the first error is raised.

    Args:
        ranks: how many.
        device_type: "cuda", a GPU a rank, or "cpu", whose threads they share.
        function: importable by its name; it finds the process group ready.
        *args: its arguments, which can be pickled.
        way_out: what to do when memory runs out.

    Returns:
        What the function returns on the first rank.

    Raises:
        UserError: what a rank could say plainly; or one was killed.
        RuntimeError: a rank failed otherwise; its traceback is the message.
        KeyboardInterrupt: Ctrl-C; no rank is left behind.
    """
    context = start_context(device_type)
    said, threads = context.SimpleQueue(), max(1, torch.get_num_threads() // ranks)
    with tempfile.TemporaryDirectory() as folder:
        place = (ranks, device_type, Path(folder).as_posix(), threads, said, dict(os.environ))
        processes = [context.Process(target=_rank, args=(rank, *place, function, args)) for rank in range(ranks)]
        try:
            with _ctrl_c_waits():
                for process in processes:
                    process.start()
            alive = processes
            while alive and not any(process.exitcode for process in processes):  # all are through, or one has failed
                wait([process.sentinel for process in alive])
                alive = [process for process in alive if process.exitcode is None]
            killed = any(process.exitcode == -signal.SIGKILL for process in processes)
        finally:
            _end([process for process in processes if process.pid is not None])
        result = Path(folder, "result")  # there once all ranks are through; gloo may still abort one that leaves
        if result.is_file():
            return pickle.loads(result.read_bytes())
        if killed:  # what the others say of it is no cause
            raise UserError(f"a rank was killed, as when memory runs out; {way_out}.")
        if not said.empty():
            raise said.get()  # of several errors the first is the cause
        raise UserError("a rank ended without a word; start again.")


def start_context(device_type: str) -> Any:
    """How processes start: on CPUs forked from one that has imported the libraries, once for all ranks.

    CUDA does not bear a fork, and Windows has none. That one process lives on: it has the environment and the standard
    output of the first launch, so a rank is handed the environment of its own.

    Args:
        device_type: "cuda" or "cpu".

    Returns:
        A context of `torch.multiprocessing`.
    """
    if device_type == "cuda" or "forkserver" not in mp.get_all_start_methods():
        return mp.get_context("spawn")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


def _end(processes: Sequence[Any]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(GRACE_S)
        process.kill()
        process.join()


def _rank(
    rank: int, ranks: int, device_type: str, folder: str, threads: int, said: Any, environment: dict[str, str],
    function: Callable[..., Any], args: Sequence[Any],
) -> None:  # fmt: skip
    """One rank; it leaves its result, or says why there is none."""
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to clean up yet
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch.set_num_threads(threads)
    os.environ.update(
        environment, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
        GROUP_RANK="0", TORCHELASTIC_RUN_ID="rsseglab",
    )  # fmt: skip
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    if device_type == "cuda":
        torch.cuda.set_device(rank)
    try:
        store = f"file://{folder}/store"
        dist.init_process_group(backend(device_type), init_method=store, rank=rank, world_size=ranks, timeout=TIMEOUT)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)  # from now on files are cleaned up
        result = function(*args)
        dist.barrier()
        if rank == 0:
            part = Path(folder, "result.part")
            part.write_bytes(pickle.dumps(result))
            part.rename(Path(folder, "result"))
        leave()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except ValueError as error:
        # Errors for the user to read: `UserError`, and the spatial engine's.
        plain = type(error).__module__.startswith("rsseglab.")
        said.put(UserError(str(error)[-SAID:]) if plain else _with_traceback(rank))
        sys.exit(1)
    except Exception:
        said.put(_with_traceback(rank))
        sys.exit(1)


def _end_with(launcher: Any) -> None:
    """Leave no rank behind where the process that started it is killed."""
    wait([launcher.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


def _with_traceback(rank: int) -> RuntimeError:
    return RuntimeError(f"rank {rank} failed:\n{traceback.format_exc()[-SAID:]}")


def leave() -> None:
    """Say goodbye once all ranks are through: one that leaves while another still talks to it may abort."""
    if dist.is_initialized():
        dist.barrier()
        with suppress(RuntimeError):  # gloo may abort all the same
            dist.destroy_process_group()


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Ctrl-C counts once all ranks are known; they inherit the mask, or one that imports would print a traceback."""
    pressed: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, handler)
    if pressed:
        raise KeyboardInterrupt
