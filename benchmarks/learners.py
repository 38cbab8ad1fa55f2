"""Several learners an outer step: one after another against together (`outer.vectorised`).

    python -m benchmarks.learners --learners 1 4 16            # operations, whatever the load
    python -m benchmarks.learners --learners 4 --repeats 5     # times, taking turns

Operations are those that compute something (views do not, nor does memory that is left as it is):
on a GPU each is a kernel to start, or more. Of an outer step together, those of the window and of
the way back are recorded there as two CUDA graphs, and what is left is started.
"""

import argparse
import json
import statistics
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.datasets import DATASETS
from benchmarks.speed import LOGS, LearnerWindow, turn
from benchmarks.work import Work, machine, published
from td3engine.config import MODES
from td3engine.config.presets import build_config
from td3engine.inner_loop.graphed import CudaGraph
from td3engine.outer_loop.distillation import Distillation, StageHook
from td3engine.outer_loop.learner_pool import PooledLearner


class Counted(TorchDispatchMode):
    """Counts operations that compute something, by the part of an outer step they belong to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts: defaultdict[str, int] = defaultdict(int)
        self.recorded = 0
        self._count = 0

    def __torch_dispatch__(
        self, function: OpOverload, _types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        self._count += not (function.is_view or "empty" in function.name())
        return function(*args, **(kwargs or {}))

    def on_stage(self, part: str) -> None:
        self.parts[part] += self._count
        self._count = 0

    def watch(self, graphed: CudaGraph) -> None:
        """Count what lies in a recording, besides."""
        function = graphed.function

        def watched(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            before = self._count
            found = function(*inputs)
            self.recorded += self._count - before
            return found

        graphed.function = watched


def distillation_of(work: Work, options: argparse.Namespace, **outer: Any) -> Distillation:
    """The engine past its first outer step, with learners that owe no warm-up."""
    config, own = work.engine_config, {"compiled": options.compiled, **outer}
    distillation = work.engine(
        config.model_copy(update={"outer": config.outer.model_copy(update=own)})
    )
    for learner, pool in distillation.pools.items():
        distillation.pools[learner] = [PooledLearner(each.state, warmup_steps=0) for each in pool]
    advance(distillation)
    return distillation


def advance(distillation: Distillation, on_stage: StageHook = lambda _part: None) -> None:
    distillation.step(on_stage)
    distillation.done += 1


def counted(distillation: Distillation) -> dict[str, int]:
    """Operations of an outer step by part; and of all of them, those in a recording."""
    with Counted() as counts:
        if distillation.together is not None:
            counts.watch(distillation.together.forward)
            counts.watch(distillation.together.reverse)
        advance(distillation, counts.on_stage)
    return {**counts.parts, "recorded": counts.recorded}


def timed(work: Work, learners: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of an outer step, one after another and together by turns, and their ratios."""
    sides = {
        vectorised: distillation_of(work, options, learners=learners, vectorised=vectorised)
        for vectorised in (False, True)
    }
    windows: dict[bool, list[LearnerWindow]] = {False: [], True: []}
    for _ in range(options.repeats):
        for vectorised, distillation in sides.items():
            step = partial(advance, distillation)
            windows[vectorised].append(turn(step, options.steps, work.device))
    pairs = list(zip(windows[False], windows[True], strict=True))
    return {
        "one by one": statistics.median(each.seconds for each in windows[False]),
        "together": statistics.median(each.seconds for each in windows[True]),
        "ratios": [one.seconds / other.seconds for one, other in pairs],
        "ratios of processor seconds": [one.processor / other.processor for one, other in pairs],
    }


def main() -> None:
    """Count, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--learners", type=int, nargs="+", default=[1, 4, 16])
    add("--mode", choices=MODES, default="shared-items")
    add("--dataset", choices=list(DATASETS), default="ml-100k")
    add("--data", type=Path, default=LOGS, help="folder of the logs")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--compiled", action="store_true", help="with outer.compiled, both")
    add("--all-positions", action="store_true", help="with the targets and windows of `balanced`")
    add("--repeats", type=int, default=0, help="turns of each; none: count only")
    add("--steps", type=int, default=2, help="a turn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    over: dict[str, Any] = {"mode": options.mode}
    if options.all_positions:
        own = build_config("balanced")
        over["learner"] = {"objective": own.learner.objective}
        over["outer"] = {"window": own.outer.window}
    config = published(options.dataset, over)
    split = DATASETS[options.dataset].read(options.data, config)
    work = Work.untrained(split, config, torch.device(options.device))
    found: dict[str, Any] = {"machine": machine(work.device), "mode": options.mode}
    for learners in options.learners:
        figures: dict[str, Any] = {}
        found[f"{learners} learners"] = figures
        if options.repeats:
            figures |= timed(work, learners, options)
            continue
        for name, vectorised in (("one by one", False), ("together", True)):
            outer = {"learners": learners, "vectorised": vectorised}
            figures[name] = counted(distillation_of(work, options, **outer))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
