"""Inner steps recorded once on a GPU and then replayed (CUDA graphs).

An inner step is some hundred kernels of a few microseconds each. Starting them from Python takes
longer than running them; a replayed recording is one start. A recording works on fixed memory:
inputs are copied into buffers, and the next call overwrites the outputs. Without a GPU the function
is called on the same buffers and its results are copied into fixed outputs, so that code that keeps
a result for too long fails in any test.

Only analytic gradients are recorded: autograd's backward would run in a thread of its own.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from td3engine.inner_loop.adam import AdamSchedule, LearnerState, PrecomputedSchedule, adam
from td3engine.inner_loop.gradients import GradFn, InnerGradient, InnerStep
from td3engine.inner_loop.unroll import Reverse, Window, meta_gradient, train
from td3engine.models.backbone import TargetPositions
from td3engine.models.recommender import StepRandomness

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
        self._replay: Callable[[], None] | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The function's results; valid until the next call.

        Raises:
            ValueError: other shapes or types than at the first call.
        """
        if self._replay is None:
            self._inputs = [each.clone() for each in inputs]
            self._replay = self._record() if self.device.type == "cuda" else self._imitate()
        for buffer, value in zip(self._inputs, inputs, strict=True):
            if (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
                kinds = [f"{each.dtype} {tuple(each.shape)}" for each in (buffer, value)]
                raise ValueError(f"recorded with {kinds[0]}, called with {kinds[1]}")
            buffer.copy_(value)
        self._replay()
        return self._outputs

    def _record(self) -> Callable[[], None]:
        """Record; returns the replay."""
        aside = torch.cuda.Stream(self.device)
        aside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self.function(*self._inputs)
        torch.cuda.current_stream(self.device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads (NCCL's) may go on meanwhile.
        with (
            _no_collection(),
            torch.cuda.graph(graph, self.pool, capture_error_mode="thread_local"),
        ):
            self._outputs = self.function(*self._inputs)
        # The function often belongs to the object that holds this one: without the reference the
        # recording is freed at once, and not when Python finds the cycle.
        self.function = _never_called_again
        return graph.replay

    def _imitate(self) -> Callable[[], None]:
        self._outputs = tuple(each.clone() for each in self.function(*self._inputs))

        def replay() -> None:
            for output, result in zip(self._outputs, self.function(*self._inputs), strict=True):
                output.copy_(result)

        return replay


def _never_called_again(*_: Tensor) -> tuple[Tensor, ...]:
    raise RuntimeError("a recording is replayed, its function is not called again")


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's collector could free another recording during this one, which would end it."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class RecordedSteps:
    """A learner's steps outside windows: one step is recorded and replayed for each.

    A pool's new learners reach the age of their first window so, and learners of a validation their
    last step.

    Args:
        grad_fn: computes an analytic gradient; batches and target positions keep their shapes.
        schedule: the learners' Adam.
    """

    def __init__(self, grad_fn: GradFn[StepRandomness], schedule: AdamSchedule) -> None:
        self.grad_fn, self.schedule = grad_fn, schedule
        self._graph: CudaGraph | None = None

    def __call__(self, synthetic: Tensor, start: LearnerState, steps: Window) -> LearnerState:
        """The state after `steps`; see `unroll.train`."""
        if self._graph is None:
            self._graph = CudaGraph(self._step, synthetic.device)
            self._targets = steps[0].randomness.targets
        rates = _rates(self.schedule, start.age, len(steps)).to(synthetic)
        state = torch.stack([start.parameters, start.first, start.second])
        for nth, step in enumerate(steps):
            batch, drawn = synthetic[step.rows], _drawn([step])
            (state,) = self._graph(state, batch, rates[nth : nth + 1], *drawn)
        return _own_memory(state, age=start.age + len(steps))

    def _step(self, state: Tensor, batch: Tensor, rates: Tensor, *drawn: Tensor) -> tuple[Tensor]:
        (randomness,) = _randomness(self._targets, *drawn)
        schedule = PrecomputedSchedule.of(self.schedule, rates)
        inner = self.grad_fn(state[0], batch, randomness, False)
        after = adam(LearnerState(state[0], state[1], state[2], 0), inner.gradient, schedule)
        return (torch.stack([after.parameters, after.first, after.second]),)


class RecordedUnroll:
    """`Unroll` of one learner at a time, as two recordings: the window, and the way back.

    Both share a pool of memory. The analytic gradients of the window stay there for the way back.
    Several learners take turns through the same recordings; their ages are data.

    Args:
        grad_fn: computes an analytic gradient; batches and target positions keep their shapes.
        schedule: the learners' Adam.
        recompute: compute each step's gradient again on the way back instead of keeping it.
    """

    def __init__(
        self, grad_fn: GradFn[StepRandomness], schedule: AdamSchedule, *, recompute: bool
    ) -> None:
        self.grad_fn, self.schedule, self.recompute = grad_fn, schedule, recompute
        self._graphs: tuple[CudaGraph, CudaGraph] | None = None
        self._windows = 0

    def __call__(
        self, synthetic: Tensor, start: LearnerState, steps: Window
    ) -> tuple[LearnerState, Reverse]:
        """See `Unroll`.

        Raises:
            ValueError: shapes or number of the steps differ from those of the first window.
        """
        if self._graphs is None:
            pool = torch.cuda.graph_pool_handle() if synthetic.device.type == "cuda" else None
            functions = self._train, self._meta_gradient
            forward, backward = (CudaGraph(each, synthetic.device, pool) for each in functions)
            self._graphs = forward, backward
            self._targets = steps[0].randomness.targets
        forward, backward = self._graphs
        state = start.parameters, start.first, start.second
        rates = _rates(self.schedule, start.age, len(steps)).to(synthetic)
        rows_WB = torch.stack([step.rows for step in steps])
        end = forward(synthetic, *state, rates, rows_WB, *_drawn(steps))
        self._windows += 1
        window = self._windows

        def reverse(outer_gradient_P: Tensor) -> Tensor:
            if window != self._windows:
                raise RuntimeError("the recording holds a later window than the one to go back")
            (to_synthetic,) = backward(outer_gradient_P)
            return to_synthetic.clone()

        return _own_memory(end, age=start.age + len(steps)), reverse

    def _train(
        self,
        synthetic: Tensor,
        parameters: Tensor,
        first: Tensor,
        second: Tensor,
        rates: Tensor,
        rows_WB: Tensor,
        *drawn: Tensor,
    ) -> tuple[Tensor, ...]:
        """The state at the window's end. What the way back needs stays in the pool."""
        draws = zip(rows_WB, _randomness(self._targets, *drawn), strict=True)
        steps = [InnerStep(rows, randomness) for rows, randomness in draws]
        schedule = PrecomputedSchedule.of(self.schedule, rates)
        self._gradients: list[InnerGradient] | None = None if self.recompute else []
        start = LearnerState(parameters, first, second, 0)
        states = train(start, synthetic, steps, self.grad_fn, schedule, self._gradients)
        self._window = states, synthetic, steps, self.grad_fn, schedule
        return states[-1].parameters, states[-1].first, states[-1].second

    def _meta_gradient(self, outer_gradient_P: Tensor) -> tuple[Tensor]:
        # A copy of the list: a warm-up empties it before the recording does.
        gradients = None if self._gradients is None else [*self._gradients]
        return (meta_gradient(*self._window, outer_gradient_P, gradients),)


def _rates(schedule: AdamSchedule, age: int, count: int) -> Tensor:
    """`AdamRates` of the next `count` steps, (W, 2), float64."""
    ages = range(age, age + count)
    return torch.tensor([schedule.at(each) for each in ages], dtype=torch.float64)


def _drawn(steps: Window) -> list[Tensor]:
    """Rows and positions of the targets, (W, K) each, and dropout (W, M) if there is any."""
    targets = [step.randomness.targets for step in steps]
    masks = [m for step in steps if (m := step.randomness.dropout) is not None]
    parts = [[each.rows for each in targets], [each.at for each in targets], masks]
    return [torch.stack(part) for part in parts if part]


def _randomness(
    like: TargetPositions, rows_WK: Tensor, at_WK: Tensor, *dropout_WM: Tensor
) -> Sequence[StepRandomness]:
    """`_drawn` undone; `like` has what is the same in every step."""
    masks = dropout_WM[0] if dropout_WM else [None] * len(rows_WK)
    return [
        StepRandomness(replace(like, rows=rows, at=at), mask)
        for rows, at, mask in zip(rows_WK, at_WK, masks, strict=True)
    ]


def _own_memory(state: Iterable[Tensor], *, age: int) -> LearnerState:
    """A state, from its parameters and moments, that outlives the recording's next call."""
    parameters, first, second = (part.clone() for part in state)
    return LearnerState(parameters, first, second, age)
