"""A learner's steps outside windows, on a GPU: one step is recorded, and replayed for each.

So a learner is brought to the age of its first window, and so are those trained that a look at
validation asks. Windows have recordings of their own (`windows`); learners of a report and of a
summary's user are not recorded.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from td3engine.inner_loop.adam import AdamSchedule, LearnerState, PrecomputedSchedule, adam
from td3engine.inner_loop.gradients import GradFn, InnerStep
from td3engine.inner_loop.graphed import CudaGraph
from td3engine.models.recommender import StepRandomness


class RecordedSteps:
    """Goes through steps of one learner at a time, whose shapes stay the same.

    Args:
        take: how a step's gradient is taken; its derivatives are written out.
    """

    def __init__(self, take: GradFn[StepRandomness]) -> None:
        self.take = take
        self._graphed: CudaGraph | None = None

    def __call__(
        self,
        synthetic: Tensor,
        start: LearnerState,
        steps: Sequence[InnerStep[StepRandomness]],
        schedule: AdamSchedule,
    ) -> LearnerState:
        """The state after `steps`; see `unroll.train`."""
        if self._graphed is None:
            self._graphed = CudaGraph(self._step, synthetic.device)
        # The same of every step, and no tensors: part of what is recorded.
        self._target_positions, self._rule = steps[0].randomness.targets, schedule
        ages = range(start.age, start.age + len(steps))
        rates = torch.tensor([schedule.at(age) for age in ages], dtype=torch.float64).to(synthetic)
        state = torch.stack([start.parameters, start.first, start.second])
        for step, rate in zip(steps, rates, strict=True):
            targets, dropout = step.randomness.targets, step.randomness.dropout
            drawn = [targets.rows, targets.at, *([] if dropout is None else [dropout])]
            (state,) = self._graphed(state, synthetic[step.rows], rate, *drawn)
        # Each in memory of its own, for it is kept, and the recording's is used again.
        parts = [part.clone() for part in state]
        return LearnerState(parts[0], parts[1], parts[2], start.age + len(steps))

    def _step(
        self,
        state: Tensor,
        batch: Tensor,
        rate: Tensor,
        rows: Tensor,
        at: Tensor,
        *dropout: Tensor,
    ) -> tuple[Tensor]:
        targets = replace(self._target_positions, rows=rows, at=at)
        taken = self.take(
            state[0], batch, StepRandomness(targets, dropout[0] if dropout else None), False
        )
        schedule = PrecomputedSchedule(self._rule.weight_decay, self._rule.beta2, rate[None])
        after = adam(LearnerState(state[0], state[1], state[2], 0), taken.gradient, schedule)
        return (torch.stack([after.parameters, after.first, after.second]),)
