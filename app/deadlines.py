"""Calls that nobody waits for longer than a deadline, whatever a library does by itself."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class DeadlineThread:
    """A thread that makes calls one after another for others. Safe to share between threads.

    A call that hangs occupies this one thread. Those behind it are given up at their deadlines, and
    are not made later. The thread does not keep the process from ending.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], T], seconds: float) -> T:
        """What `function` returns.

        Raises:
            TimeoutError: it has not returned in time. If it had begun, it may still do its work.
            Exception: whatever it raised.
        """
        with self._start_lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        future: Future[T] = Future()
        self._calls.put((future, function))
        try:
            return future.result(seconds)
        except TimeoutError:
            future.cancel()
            if future.done() and not future.cancelled():
                return future.result()  # it returned, or raised a TimeoutError of its own
            raise TimeoutError(f"no answer within {seconds:g} seconds") from None

    def close(self) -> None:
        """Let the thread end after the calls that wait for it; a later call starts another."""
        with self._start_lock:
            if self._thread is not None:
                self._calls.put(None)
                self._thread = None

    def _run(self) -> None:
        while call := self._calls.get():
            future, function = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 (whoever waits raises it)
                future.set_exception(error)
