"""Wall time by phase and time left, on a clock that the test turns."""

from dataclasses import dataclass

import pytest

from td3engine.events import Event, PhaseStarted, Progress
from td3engine.pipeline.progress import PhaseClock


@dataclass
class Clock:
    """Time that passes when it is told to."""

    now: float = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("td3engine.pipeline.progress.time", clock)
    return clock


def test_seconds_add_up_by_phase_over_several_processes(clock: Clock) -> None:
    events: list[Event] = []
    phases = PhaseClock(events.append)
    clock.now += 1
    phases.enter("preparing")
    clock.now += 2
    phases.enter("distilling")
    clock.now += 4
    assert phases.update() == {"preparing": 3.0, "distilling": 4.0}
    clock.now += 8
    assert phases.update() == {"preparing": 3.0, "distilling": 12.0}
    assert events == [PhaseStarted("preparing"), PhaseStarted("distilling")]
    resumed = PhaseClock(events.append)
    resumed.seconds = {"preparing": 3.0, "distilling": 12.0}
    clock.now += 0.5
    resumed.enter("distilling")
    clock.now += 1
    assert resumed.update() == {"preparing": 3.5, "distilling": 13.0}


def test_the_time_left_goes_by_this_process_alone(clock: Clock) -> None:
    events: list[Event] = []
    phases = PhaseClock(events.append)
    phases.enter("distilling")
    report = phases.reporter(100, 60)  # 60 steps in an earlier process
    clock.now += 10
    report(65, 0.0)
    clock.now += 30
    report(80, 0.25)
    report(100, 0.25)
    assert events[1:] == [
        Progress("distilling", 65, 100, 70.0, {}),  # 2 s a step
        Progress("distilling", 80, 100, 40.0, {"ndcg@10": 0.25}),
        Progress("distilling", 100, 100, 0.0, {"ndcg@10": 0.25}),
    ]


def test_where_early_stopping_may_end_a_phase_no_time_left_is_known(clock: Clock) -> None:
    events: list[Event] = []
    phases = PhaseClock(events.append)
    phases.enter("pretraining")
    report = phases.reporter(9, 0, may_end_early=True)
    clock.now += 1
    report(1, 0.5)
    assert events[1:] == [Progress("pretraining", 1, 9, None, {"ndcg@10": 0.5})]
