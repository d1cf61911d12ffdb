"""``spawn(n, function, *args)`` runs a function on n gloo ranks; each rank's assertion reaches the test."""

import os
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rsseglab.launch import start_context


def _rank(rank, world, folder, seconds, function, args):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=seconds),
    )
    function(rank, *args)
    dist.barrier()
    dist.destroy_process_group()


def spawn(world, function, *args, seconds=60):
    with tempfile.TemporaryDirectory() as folder:
        place = (world, Path(folder).as_posix(), seconds, function, args)
        mp.start_processes(_rank, place, nprocs=world, start_method=start_context("cpu").get_start_method())
