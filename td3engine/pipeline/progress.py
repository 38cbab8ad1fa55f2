"""Progress of a run: phases with their wall time, and steps with an estimate of the time left."""

import time
from collections.abc import Callable

from td3engine.events import Listener, Phase, PhaseStarted, Progress

Report = Callable[[int, float], None]
"""(step, best validation NDCG@10 so far) -> None."""


class PhaseClock:
    """Wall time by phase; announces each phase to a listener.

    Attributes:
        phase: the running phase.
        seconds: wall time by phase, including earlier processes of the same run.
    """

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.phase: Phase = "preparing"
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def enter(self, phase: Phase) -> None:
        """Begin a phase."""
        self.update()
        self.phase = phase
        self.listener(PhaseStarted(phase))

    def update(self) -> dict[str, float]:
        """Add the running phase's time up to now; returns the seconds by phase."""
        now = time.perf_counter()
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self._began
        self._began = now
        return self.seconds

    def reporter(self, total: int, already: int, *, may_end_early: bool = False) -> Report:
        """A function that reports the running phase's steps.

        Args:
            total: steps of the phase.
            already: steps of earlier processes, which do not count in the estimate of time left.
            may_end_early: whether early stopping may end the phase: the time left is unknown then.
        """
        began, phase = time.perf_counter(), self.phase

        def report(step: int, best: float) -> None:
            spent = time.perf_counter() - began
            left = None if may_end_early else spent / (step - already) * (total - step)
            # Before the first validation there is no metric.
            metrics = {"ndcg@10": best} if best > 0 else {}
            self.listener(Progress(phase, step, total, left, metrics))

        return report
