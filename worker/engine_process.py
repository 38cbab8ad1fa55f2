"""The engine's process: start it, read its output, stop it."""

import contextlib
import logging
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextvars import copy_context
from types import TracebackType
from typing import IO, Self

from app.processes.environment import environment_without_secrets
from app.processes.launch import launch_command

logger = logging.getLogger(__name__)
engine_logger = logging.getLogger("engine")  # the engine's output that is no event

MAX_LINE_BYTES = 1024 * 1024
_TAIL_LINES = 40
_TAIL_LINE_BYTES = 2000
_TAIL_CHARACTERS = 5000
_DRAIN_SECONDS = 5.0  # for output that is still in the pipe after the process has ended


class EngineProcess:
    """A process in a session of its own, killed when this worker dies or the `with` block ends.

    The kernel ties its life to the *thread* that started it, so that thread has to live on.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """Start the process.

        Raises:
            OSError: it cannot be started.
        """
        # None marks the end of the output.
        self._lines: queue.Queue[bytes | None] = queue.Queue(maxsize=1000)
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._process = subprocess.Popen(
            launch_command(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=environment_without_secrets(),
        )
        self.pid = self._process.pid
        self._readers = [
            # In a copy of this context, so that their log records carry the job's fields.
            threading.Thread(target=copy_context().run, args=(read,), name=name, daemon=True)
            for read, name in (
                (self._read_stdout, f"stdout-{self.pid}"),
                (self._read_stderr, f"stderr-{self.pid}"),
            )
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def lines(self, tick: float = 0.2) -> Iterator[bytes | None]:
        """Lines of stdout until the process has ended; None for each `tick` seconds without one."""
        ended_at: float | None = None
        while True:
            try:
                line = self._lines.get(timeout=tick)
            except queue.Empty:
                if self._exited():
                    # Its own children may hold the pipe open; the kill lets the pipe end.
                    self.kill()
                    ended_at = ended_at or time.monotonic()
                    if time.monotonic() - ended_at > _DRAIN_SECONDS:
                        logger.warning("another process keeps the engine's output open: not read")
                        return
                yield None
                continue
            if line is None:
                break
            yield line
        while not self._exited():  # it closed its output before it ended
            time.sleep(0.02)
            yield None

    def terminate(self) -> None:
        """Send SIGTERM: the engine writes a checkpoint and exits."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to its process group."""
        self._signal(signal.SIGKILL)

    def end(self) -> int:
        """Kill the rest of its group and reap the process; returns its exit code, as Popen does."""
        if self._process.returncode is None:
            self.kill()  # before the reaping, until which its process id cannot be reused
            self._process.wait()
            deadline = time.monotonic() + _DRAIN_SECONDS
            while any(r.is_alive() for r in self._readers) and time.monotonic() < deadline:
                self._discard_lines()  # a reader may be blocked by the full queue
                self._readers[0].join(timeout=0.01)
                self._readers[1].join(timeout=0.01)
        return self._process.returncode

    def tail(self) -> str:
        """The last lines of stderr."""
        return "\n".join(self._tail)[-_TAIL_CHARACTERS:]

    def _signal(self, number: signal.Signals) -> None:
        # An empty group needs no signal.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _exited(self) -> bool:
        """Whether it ended. It is not reaped, so its group's id cannot be reused."""
        if self._process.returncode is not None:
            return True
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, options) is not None

    def _discard_lines(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._lines.get_nowait()

    def _read_stdout(self) -> None:
        assert self._process.stdout is not None
        for line, whole in _read_lines(self._process.stdout, MAX_LINE_BYTES):
            if whole:
                self._lines.put(line)
            else:
                logger.warning("a line of the engine above %d bytes was dropped", MAX_LINE_BYTES)
        self._lines.put(None)

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        for line, _ in _read_lines(self._process.stderr, _TAIL_LINE_BYTES):
            text = line.decode(errors="replace").rstrip()
            self._tail.append(text)
            engine_logger.info("%s", text)


def _read_lines(stream: IO[bytes], limit: int) -> Iterator[tuple[bytes, bool]]:
    """Lines, each with whether it is complete: longer lines are cut to `limit` bytes."""
    with stream:
        while line := stream.readline(limit):
            whole = rest = line.endswith(b"\n") or len(line) < limit
            while not rest:
                more = stream.readline(limit)
                rest = more.endswith(b"\n") or len(more) < limit
            yield line, whole
