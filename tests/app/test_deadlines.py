"""Calls with a deadline; other threads are held by events, never by the clock."""

import threading
from collections.abc import Iterator

import pytest

from app.deadlines import DeadlineThread

SOON, LONG = 0.05, 30.0


@pytest.fixture
def thread() -> Iterator[DeadlineThread]:
    thread = DeadlineThread("deadlines of a test")
    yield thread
    thread.close()


def running() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "deadlines of a test"]


def test_a_call_returns_and_raises_what_its_function_does(thread: DeadlineThread) -> None:
    def out_of_time() -> None:
        raise TimeoutError("the function's own")

    assert thread.call(lambda: 7, LONG) == 7
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 // 0, LONG)
    with pytest.raises(TimeoutError, match="the function's own"):
        thread.call(out_of_time, LONG)
    assert len(running()) == 1


def test_a_call_that_hangs_is_given_up_and_those_behind_it_are_not_made(
    thread: DeadlineThread,
) -> None:
    release, ended, made = threading.Event(), threading.Event(), []

    def hangs() -> None:
        release.wait()
        ended.set()

    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 seconds"):
        thread.call(hangs, SOON)
    with pytest.raises(TimeoutError):
        thread.call(lambda: made.append("behind"), SOON)
    release.set()
    assert thread.call(lambda: "after", LONG) == "after"
    assert ended.is_set()  # it had begun
    assert made == []


def test_a_closed_thread_ends_after_its_calls_and_another_follows(thread: DeadlineThread) -> None:
    thread.call(lambda: None, LONG)
    (first,) = running()
    thread.close()
    thread.close()
    first.join(LONG)
    assert not first.is_alive()
    assert thread.call(lambda: 1, LONG) == 1
    (second,) = running()
    assert second is not first
