"""The bars as a terminal shows them in the end."""

import io

import pytest
from rich.console import Console

from td3engine.events import Event, Note, PhaseStarted, Progress, to_line
from td3engine.pipeline.progress_bar import PhaseBars

EVENTS: list[Event] = [
    PhaseStarted("preparing"),
    PhaseStarted("pretraining"),
    Progress("pretraining", 3, 200, None, {"ndcg@10": 0.125}),
    Note("[red]few[/] cores"),
    PhaseStarted("distilling"),
    Progress("distilling", 30, 60, 12.4, {}),
    Progress("distilling", 60, 60, 0.0, {"ndcg@10": 0.25}),
    PhaseStarted("evaluating"),
]


def console() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=False, width=120), out


def shown(out: io.StringIO) -> list[list[str]]:
    """Words of each line, without bars and clocks."""
    lines = [line.split() for line in out.getvalue().splitlines()]
    return [
        [word for word in words if "━" not in word and not word.startswith("0:")]
        for words in lines
        if words
    ]


EXPECTED = [
    ["note:", "[red]few[/]", "cores"],
    ["reading"],
    ["teacher", "3/200", "val", "NDCG@10", "0.1250"],
    ["distilling", "60/60", "val", "NDCG@10", "0.2500"],
    ["measuring"],
]


def test_a_run_in_this_process() -> None:
    screen, out = console()
    with PhaseBars(screen) as bars:
        for event in EVENTS:
            bars.listen(event)
    assert shown(out) == EXPECTED
    assert all(task.finished for task in bars.progress.tasks)


def test_a_job_of_a_service_looks_the_same() -> None:
    """Its events come as JSON: type and data, with more phases and events of other kinds."""
    import json

    screen, out = console()
    with PhaseBars(screen) as bars:
        bars.show_event("status", {"status": "running"})
        for event in EVENTS:
            data = json.loads(to_line(event))
            bars.show_event(data.pop("event"), data)
        bars.show_event("progress", {"phase": "evaluating", "step": 1, "total": 2, "metrics": None})
        bars.show_event("checkpoint", {"path": "x"})
        bars.show_event("phase", {"phase": "publishing"})
        bars.show_event("phase", {"phase": "a later release's"})
    assert shown(out)[:4] == EXPECTED[:4]
    assert shown(out)[4:] == [["measuring", "1/2"], ["storing"], ["a", "later", "release's"]]


def test_a_phase_begun_again_goes_on_in_its_bar() -> None:
    """As after a worker's second attempt."""
    screen, out = console()
    with PhaseBars(screen) as bars:
        for phase in ("preparing", "distilling", "preparing", "distilling"):
            bars.enter(phase)
        bars.show("distilling", 4, 9, 3.6, {})
        assert bars.progress.tasks[1].fields["left"] == "4 s left"
    assert shown(out) == [["reading"], ["distilling", "4/9"]]


def test_an_error_leaves_the_bar_where_it_was() -> None:
    screen, _ = console()
    with pytest.raises(RuntimeError), PhaseBars(screen) as bars:
        bars.show("distilling", 4, 9, None, {})
        raise RuntimeError
    assert not bars.progress.tasks[0].finished
    assert not bars.progress.live.is_started


def test_nothing_is_shown_of_a_run_without_events() -> None:
    screen, out = console()
    with PhaseBars(screen):
        pass
    assert out.getvalue().strip() == ""
