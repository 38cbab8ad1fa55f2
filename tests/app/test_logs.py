"""Log records: one line each, whatever is in them, and the ids of what they are about."""

import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest

from app.logs import JsonFormatter, TextFormatter, current_request_id, log_fields


def record(message: str, *arguments: object, exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord("room", logging.INFO, __file__, 1, message, arguments, exc_info)


def formatted(*arguments: Any, **more: Any) -> dict[str, Any]:
    line = JsonFormatter().format(record(*arguments, **more))
    assert "\n" not in line
    entry: dict[str, Any] = json.loads(line)
    return entry


def test_a_record_is_one_line_of_json() -> None:
    entry = formatted("two\nlines, %s", 'a "quote" and \ud800')
    assert entry.pop("time").endswith("+00:00")
    message = 'two\nlines, a "quote" and \ud800'
    assert entry == {"level": "INFO", "logger": "room", "message": message}


def test_a_traceback_is_in_the_same_line() -> None:
    try:
        raise ValueError("swordfish")
    except ValueError:
        entry = formatted("failed", exc_info=sys.exc_info())
    assert "Traceback" in entry["exception"]
    assert entry["exception"].endswith("ValueError: swordfish")


def test_fields_are_those_of_the_block() -> None:
    with log_fields(job_id="job_1", request_id=None):
        with log_fields(attempt=2, job_id="job_2"):
            inner = formatted("x")
        outer = formatted("x")
        text = TextFormatter().format(record("x"))
    assert (inner["job_id"], inner["attempt"]) == ("job_2", 2)
    assert outer["job_id"] == "job_1"
    assert not {"attempt", "request_id"} & outer.keys()
    assert text.endswith("INFO room: x [job_id=job_1]")
    assert "job_id" not in formatted("x")


FORGED = "2026-11-28 12:00:00,000 INFO app.access: GET /forged"


@pytest.mark.parametrize(
    "control", ["\n", "\r", "\r\n", "\0", "\x0b", "\x1b[2K", "\x7f", "\x85", "\u2028", "\u2029"]
)
def test_text_from_outside_forges_no_line(control: str) -> None:
    with log_fields(client=f"c{control}{FORGED}"):
        text = TextFormatter().format(record("GET %s", f"/jobs{control}{FORGED}"))
    assert text.isprintable(), ascii(text)
    assert text.count(FORGED) == 2


def test_a_traceback_as_text_is_readable_and_forges_no_line() -> None:
    try:
        raise ValueError(f"swordfish\n{FORGED}\r{FORGED}\u2028{FORGED}")
    except ValueError:
        failed = record("failed", exc_info=sys.exc_info())
    failed.exc_text = FORGED  # of another formatter: not ours to trust
    text = TextFormatter().format(failed)
    first, *below = text.splitlines()
    assert first.endswith("INFO room: failed")
    assert below[0] == "  Traceback (most recent call last):"
    assert "  ValueError: swordfish" in below
    assert all(line.startswith("  ") for line in below)
    assert text.count(FORGED) == 3


def test_a_thread_takes_them_along_in_a_copied_context() -> None:
    with log_fields(request_id="r1"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(copy_context().run, current_request_id).result() == "r1"
        assert pool.submit(current_request_id).result() is None


@pytest.mark.parametrize(("form", "is_json"), [("auto", True), ("json", True), ("text", False)])
def test_every_record_of_a_process_goes_to_stderr_in_one_form(form: str, is_json: bool) -> None:
    program = (
        "import logging, sys, warnings; from app.logs import set_up_logging;"
        "set_up_logging(sys.argv[1]);"
        "set_up_logging('json');"  # the first one stays
        "logging.getLogger('uvicorn.error').info('one'); logging.getLogger('x').warning('two');"
        "logging.getLogger('uvicorn.access').info('not this'); warnings.warn('three')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, form], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    if is_json:
        messages = [json.loads(line)["message"] for line in done.stderr.splitlines()]
        assert messages[:2] == ["one", "two"]
        assert "UserWarning: three" in messages[2]
        assert len(messages) == 3
    else:
        first, second, *warning = done.stderr.splitlines()
        assert first.endswith("INFO uvicorn.error: one")
        assert second.endswith("WARNING x: two")
        assert any("three" in line for line in warning)
