"""A function of tensors that is recorded once on a GPU and then replayed (CUDA graphs).

Some thousand kernels of a few microseconds each take longer to start from Python than to run;
replayed they are one start. A recording works on fixed memory, so inputs are copied into buffers,
and outputs are overwritten by the next call. Without a GPU the function is called on the same
buffers, and its results are copied into outputs that stay, so that code which keeps a result for
too long goes wrong, and is found out, everywhere.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 2  # calls before a recording, in which libraries set themselves up

Function = Callable[..., tuple[Tensor, ...]]


class CudaGraph:
    """`function` of tensors whose shapes stay the same.

    Functions that share a `pool` and read what an earlier one has left in memory must always be
    called in the order of their first calls.

    Args:
        function: it waits for nothing on the GPU, draws no random numbers, and does the same at
            each call.
        device: of its tensors.
        pool: the recording's memory (`torch.cuda.graph_pool_handle`); None for memory of its own.
    """

    def __init__(self, function: Function, device: torch.device, pool: Any = None) -> None:
        self.function, self.device, self.pool = function, device, pool
        self._inputs: list[Tensor] = []
        self._outputs: tuple[Tensor, ...] = ()
        self._again: Callable[[], None] | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the function gives; valid until the next call.

        Raises:
            ValueError: other shapes or types than at the first call.
        """
        if self._again is None:
            self._inputs = [each.clone() for each in inputs]
            self._again = self._recorded() if self.device.type == "cuda" else self._called()
        for buffer, given in zip(self._inputs, inputs, strict=True):
            if (buffer.shape, buffer.dtype) != (given.shape, given.dtype):
                kinds = [f"{each.dtype} {tuple(each.shape)}" for each in (buffer, given)]
                raise ValueError(f"recorded with {kinds[0]}, called with {kinds[1]}")
            buffer.copy_(given)
        self._again()
        return self._outputs

    def _recorded(self) -> Callable[[], None]:
        """Record; the replay."""
        aside = torch.cuda.Stream(self.device)
        aside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self.function(*self._inputs)
        torch.cuda.current_stream(self.device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads (NCCL's) may go on as they like meanwhile.
        with (
            _no_collection(),
            torch.cuda.graph(graph, self.pool, capture_error_mode="thread_local"),
        ):
            self._outputs = self.function(*self._inputs)
        # Not needed any more, and often part of what holds this object: a recording would live on
        # until Python finds the cycle.
        self.function = _recorded_already
        return graph.replay

    def _called(self) -> Callable[[], None]:
        self._outputs = tuple(each.clone() for each in self.function(*self._inputs))

        def again() -> None:
            for output, found in zip(self._outputs, self.function(*self._inputs), strict=True):
                output.copy_(found)

        return again


def _recorded_already(*_: Tensor) -> tuple[Tensor, ...]:
    raise RuntimeError("a recording is replayed, its function is not called again")


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's collector would free another recording in the midst of this one, which ends it."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
