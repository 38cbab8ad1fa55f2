"""Several processes of one run, started without a launcher, so that nobody ends them but they."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

from td3engine.runtime.distributed import join

CPU = torch.device("cpu")
# Torch is imported once, by the server that processes are forked from.
_START = multiprocessing.get_context("forkserver")
_START.set_forkserver_preload(["tests.td3engine.test_parallel"])
_LONGEST = 300.0


def together(
    work: Callable[..., None], *arguments: Any, size: int = 2, patience: float = 120.0
) -> list[int | None]:
    """Run `work(world, *arguments)` in so many processes; their exit codes (None: hung)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        _START.Process(target=_enter, args=(rank, size, port, patience, work, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(_LONGEST)
    found = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return found


def _enter(
    rank: int,
    size: int,
    port: int,
    patience: float,
    work: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    work(join(CPU, timedelta(seconds=patience)), *arguments)
