"""Events as lines of JSON: there and back, and what a line that is none does."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from td3engine.events import (
    ArtifactFile,
    CheckpointWritten,
    EngineEvent,
    Note,
    PhaseStarted,
    Progress,
    RunRefused,
    RunSucceeded,
    parse_event,
    to_line,
)

EVENTS: list[tuple[EngineEvent, dict[str, Any]]] = [
    (PhaseStarted("distilling"), {"event": "phase", "phase": "distilling"}),
    (
        Progress("distilling", 3, 9, 1.5, {"ndcg@10": 0.25}),
        {
            "event": "progress",
            "phase": "distilling",
            "step": 3,
            "total": 9,
            "seconds_left": 1.5,
            "metrics": {"ndcg@10": 0.25},
        },
    ),
    (
        Progress("pretraining", 0, 0),
        {
            "event": "progress",
            "phase": "pretraining",
            "step": 0,
            "total": 0,
            "seconds_left": None,
            "metrics": {},
        },
    ),
    (Note("two\nlines é\0"), {"event": "log", "level": "warning", "message": "two\nlines é\0"}),
    (
        CheckpointWritten("a b/checkpoint.pt", "evaluating", 6),
        {"event": "checkpoint", "path": "a b/checkpoint.pt", "phase": "evaluating", "step": 6},
    ),
    (
        RunSucceeded([ArtifactFile("manifest.json", "/x/manifest.json", "application/json")], {}),
        {
            "event": "result",
            "artifacts": [
                {
                    "name": "manifest.json",
                    "path": "/x/manifest.json",
                    "media_type": "application/json",
                }
            ],
            "metrics": {},
        },
    ),
    (
        RunRefused("too_little_data", "nothing"),
        {"event": "error", "code": "too_little_data", "message": "nothing"},
    ),
]


@pytest.mark.parametrize(("event", "content"), EVENTS)
def test_an_event_is_the_line_of_the_contract_and_comes_back(
    event: EngineEvent, content: dict[str, Any]
) -> None:
    line = to_line(event)
    assert "\n" not in line
    assert json.loads(line) == content
    assert parse_event(line.encode()) == event
    # Another writer's order, white space and fields that a later release adds.
    spaced = json.dumps({"later": 1, **dict(reversed(content.items()))}, indent=1)
    assert parse_event(spaced.encode() + b"\n") == event


def strict(line: str) -> Any:
    """The content of a line, where nothing but JSON is accepted."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_lacks_become_null(value: float) -> None:
    progress = Progress("distilling", 1, 2, value, {"ndcg@10": value, "deep": [{"x": value}]})
    content = strict(to_line(progress))
    assert content["seconds_left"] is None
    assert content["metrics"] == {"ndcg@10": None, "deep": [{"x": None}]}
    assert strict(to_line(RunSucceeded([], {"rows": [{"x": value}]})))["metrics"] == {
        "rows": [{"x": None}]
    }


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_such_numbers_of_another_writer_become_null_too(number: str) -> None:
    head = '{"event": "progress", "phase": "distilling", "step": 1, "total": 2, '
    line = head + f'"seconds_left": {number}, "metrics": {{"x": [{number}, 1e3]}}}}'
    event = parse_event(line.encode())
    assert event == Progress("distilling", 1, 2, None, {"x": [None, 1000.0]})


NO_EVENTS = [
    b"",
    b"\n",
    b"Epoch 3: loss 0.5",
    b"{",
    b"[]",
    b"null",
    b"3",
    b'"phase"',
    b"{}",
    b'{"phase": "distilling"}',
    b'{"event": "other", "phase": "distilling"}',
    b'{"event": null}',
    b'{"event": ["phase"], "phase": "x"}',
    b'{"event": "phase"}',
    b'{"event": "phase", "phase": ""}',
    b'{"event": "phase", "phase": "%s"}' % (b"x" * 41),
    b'{"event": "progress", "phase": "x", "step": -1, "total": 2}',
    b'{"event": "progress", "phase": "x", "step": 1.5, "total": 2}',
    b'{"event": "progress", "phase": "x", "step": 1, "total": 2, "metrics": 3}',
    b'{"event": "checkpoint", "path": 3, "phase": "x", "step": 1}',
    b'{"event": "result", "artifacts": [{"name": "../x", "path": "", "media_type": ""}], '
    b'"metrics": {}}',
    b'{"event": "error", "code": "%s", "message": ""}' % (b"x" * 101),
    b"\xff\xfe",
    b'{"event": "phase", "phase": "\xff"}',
    b"[" * 100_000,
    b'{"event": "progress", "step": %s}' % (b"9" * 10_000),
]


@pytest.mark.parametrize("line", NO_EVENTS, ids=range(len(NO_EVENTS)))
def test_a_line_that_is_no_event_is_none(line: bytes) -> None:
    assert parse_event(line) is None


@given(line=st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_no_line_is_an_error(line: bytes) -> None:
    assert parse_event(line) is None
