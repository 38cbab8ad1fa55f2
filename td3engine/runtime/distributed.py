"""Processes that distil together: each trains its share of an outer step's learners.

`torchrun --nproc-per-node 2 -m td3engine.cli distill ...` starts them. The first one (rank 0)
leads: it trains the teacher, writes checkpoint and summary, and speaks. A process by itself is a
`World`, where every call is trivial, so that code reads the same for one and for many.

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

# What the others wait for at most is an epoch of the leader's teacher.
PATIENCE = timedelta(hours=1)

Tree = Any
"""Tensors, numbers and strings in dictionaries and lists: what `torch.load` reads safely."""


class ProcessGroup:
    """A process by itself: rank 0 of 1."""

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

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether a process has it set."""
        return flags

    def broadcast(self, tree: Tree, device: torch.device) -> Tree:
        """The leader's `tree`, on this process's device; the others' own is ignored."""
        del device
        return tree

    def gather(self, tree: Tree, device: torch.device) -> list[Tree]:
        """All processes' trees by rank, on the leader's device; elsewhere this process's only."""
        del device
        return [tree]

    def iterate_on_main(self, values: Iterator[float]) -> Iterator[float]:
        """`values` as the leader goes through them; the others get each one, and do no work."""
        return values

    def close(self) -> None:
        """Part; each process goes on by itself, as another `World`."""


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

    def any(self, *flags: bool) -> tuple[bool, ...]:
        raised = torch.tensor(flags, dtype=torch.int32)
        with self._others():
            dist.all_reduce(raised, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised)

    def broadcast(self, tree: Tree, device: torch.device) -> Tree:
        sent = _packed(tree) if self.is_main else torch.empty(0, dtype=torch.uint8)
        size = torch.tensor(len(sent))
        with self._others():
            dist.broadcast(size, 0)
            if not self.is_main:
                sent = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(sent, 0)
        return tree if self.is_main else _unpacked(sent, device)

    def gather(self, tree: Tree, device: torch.device) -> list[Tree]:
        if not self.is_main:
            packed = _packed(tree)
            with self._others():
                dist.send(torch.tensor(len(packed)), 0)
                dist.send(packed, 0)
                dist.barrier()  # nobody ends while the leader still reads
            return [tree]
        found = [tree]
        for rank in range(1, self.size):
            size = torch.tensor(0)
            with self._others():
                dist.recv(size, rank)
                packed = torch.empty(int(size), dtype=torch.uint8)
                dist.recv(packed, rank)
            found.append(_unpacked(packed, device))
        with self._others():
            dist.barrier()
        return found

    def iterate_on_main(self, values: Iterator[float]) -> Iterator[float]:
        cpu = torch.device("cpu")
        if self.is_main:
            for value in values:
                self.broadcast(value, cpu)
                yield value
            self.broadcast(None, cpu)
        else:
            while (value := self.broadcast(None, cpu)) is not None:
                yield value

    def close(self) -> None:
        with self._others():
            dist.barrier()
        dist.destroy_process_group()

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
    """The world that a launcher (torchrun) has put this process into, else one by itself.

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
    ranks = TorchProcessGroup(int(os.environ["RANK"]), size)
    if device.type == "cuda":
        local, here = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= here:
            raise DeviceError(f"process {local + 1} of this machine has no GPU: it has {here}")
        torch.cuda.set_device(local)
    with ranks._others():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=patience)
    return ranks


def _packed(tree: Tree) -> Tensor:
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


def _unpacked(packed: Tensor, device: torch.device) -> Tree:
    return torch.load(io.BytesIO(packed.numpy().data), map_location=device, weights_only=True)
