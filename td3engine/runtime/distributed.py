"""Processes that distil together: each trains its share of an outer step's learners.

`torchrun --nproc-per-node 2 -m td3engine.cli distill ...` starts them. The main process (rank 0)
trains the teacher, writes checkpoint and summary, and reports. All hold the same factors and
optimizer: the one exchange of an outer step is an all-reduce of the factors' gradient. A process by
itself is a `ProcessGroup` of one, so that code reads the same for one and for many.

All processes make the same calls in the same order. One that fails ends; the others find their
connection to it closed, or wait no longer than a time limit, and end too (`PeerLostError`).
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from td3engine.errors import DeviceError, PeerLostError

PATIENCE = timedelta(hours=1)  # the longest wait is for an epoch of the main process's teacher
CPU = torch.device("cpu")

Tree = Any
"""Tensors, numbers and strings in dictionaries and lists: what `torch.load` reads safely."""


class ProcessGroup:
    """A process by itself: rank 0 of 1.

    A group of several overrides `all_reduce`, `broadcast`, `gather` and `close`.
    """

    rank = 0
    size = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process's part of `count` numbered pieces of work."""
        return range(self.rank, count, self.size)

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, the same bits in each of them."""

    def broadcast(self, tree: Tree, device: torch.device) -> Tree:
        """The main process's `tree`, on this process's device; the others' own is ignored."""
        del device
        return tree

    def gather(self, tree: Tree, device: torch.device) -> list[Tree]:
        """All processes' trees by rank, on the main process's device; elsewhere only its own."""
        del device
        return [tree]

    def close(self) -> None:
        """Leave the group; each process goes on by itself, with a `ProcessGroup` of one."""

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any process has it set."""
        counts = torch.tensor(flags, dtype=torch.int32)
        self.all_reduce([counts])
        return tuple(bool(count) for count in counts)

    def iterate_on_main(self, values: Iterator[float]) -> Iterator[float]:
        """`values` as the main process computes them; the others receive each one."""
        if self.is_main:
            for value in values:
                yield self.broadcast(value, CPU)
            self.broadcast(None, CPU)
        else:
            while (value := self.broadcast(None, CPU)) is not None:
                yield value


class TorchProcessGroup(ProcessGroup):
    """One of several processes, over torch.distributed: tensors of a GPU by NCCL, others by gloo.

    Every method raises PeerLostError when another process has ended or does not answer.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with self._others():
            dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def broadcast(self, tree: Tree, device: torch.device) -> Tree:
        packed = self._send_to_all(tree, 0)
        return tree if self.is_main else _unpacked(packed, device)

    def gather(self, tree: Tree, device: torch.device) -> list[Tree]:
        trees = [tree]
        for rank in range(1, self.size):
            packed = self._send_to_all(tree, rank)
            if self.is_main:
                trees.append(_unpacked(packed, device))
        with self._others():
            dist.barrier()  # no process ends while another one still receives
        return trees

    def close(self) -> None:
        with self._others():
            dist.barrier()
        dist.destroy_process_group()

    def _send_to_all(self, tree: Tree, source: int) -> Tensor:
        """The bytes of one process's tree, in all processes."""
        packed = _packed(tree) if self.rank == source else torch.empty(0, dtype=torch.uint8)
        size = torch.tensor(len(packed))
        with self._others():
            dist.broadcast(size, source)
            if self.rank != source:
                packed = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(packed, source)
        return packed

    @contextmanager
    def _others(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise PeerLostError(
                f"rank {self.rank} of {self.size}: another process of this run has ended or does "
                f"not answer; its own message says why ({str(error)[:200]})"
            ) from error


def join(device: torch.device, patience: timedelta = PATIENCE) -> ProcessGroup:
    """The group that a launcher (torchrun) has put this process into, else one by itself.

    Args:
        device: where to compute. On CUDA each process of a machine gets a GPU of its own, which
            is torch's current one from here on.
        patience: longest wait for another process.

    Raises:
        DeviceError: a machine has fewer GPUs than processes.
        PeerLostError: the others have not come in that time.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ProcessGroup()
    group = TorchProcessGroup(int(os.environ["RANK"]), size)
    if device.type == "cuda":
        local, here = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= here:
            raise DeviceError(f"process {local + 1} of this machine has no GPU: it has {here}")
        torch.cuda.set_device(local)
    with group._others():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=patience)
    return group


def _packed(tree: Tree) -> Tensor:
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


def _unpacked(packed: Tensor, device: torch.device) -> Tree:
    return torch.load(io.BytesIO(packed.numpy().data), map_location=device, weights_only=True)
