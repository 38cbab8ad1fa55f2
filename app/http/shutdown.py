"""Tells open requests that the server is stopping."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_event() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set before the server's own handlers run.

    Uvicorn waits for open requests without telling them. So event streams and waiting polls would
    delay every stop until uvicorn cancels them.
    """
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping  # embedded, for example in a test: Python allows no handlers here
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, frame: FrameType | None) -> None:
        stopping.set()
        handler = previous[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number, handler in previous.items():
        if callable(handler):  # otherwise the default action ends the process at once
            signal.signal(number, on_signal)
    yield stopping
    for number, handler in previous.items():
        signal.signal(number, handler)
