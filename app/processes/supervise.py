"""Supervised child processes: started, restarted after a crash, stopped."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from app.processes.launch import launch_command

logger = logging.getLogger(__name__)

CRASH_LIMIT = 3  # so many crashes within so many seconds end the service
CRASH_WINDOW_SECONDS = 60.0


class ServeError(Exception):
    """The service cannot start or go on; the text tells the user why."""


class Child:
    """A supervised process, in a session of its own so that Ctrl-C reaches only its parent.

    The kernel kills it when its parent ends, even by `kill -9`. Start it from the main thread,
    because the kernel watches the thread that starts it.

    Args:
        name: for the log.
        command: program and arguments.
        environment: all of its environment variables.
        grace_seconds: from SIGTERM to SIGKILL.
        open_files: file descriptors that it inherits.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        grace_seconds: float,
        open_files: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.command = list(command)
        self.environment = dict(environment)
        self.grace_seconds = grace_seconds
        self.open_files = tuple(open_files)
        self._process: subprocess.Popen[bytes] | None = None
        self._crashes: deque[float] = deque(maxlen=CRASH_LIMIT)
        self._deadline: float | None = None  # end of the grace period, after SIGTERM

    @property
    def pid(self) -> int:
        """Its process id; 0 before the first start."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Start it. Its output goes to stderr, because stdout is for programs.

        Raises:
            OSError: it cannot be started.
        """
        self._process = subprocess.Popen(
            launch_command(self.command),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            start_new_session=True,
            pass_fds=self.open_files,
        )
        logger.info("%s started: process %d", self.name, self.pid)

    def revive(self) -> bool:
        """Restart it if it has ended. Returns whether it had.

        Raises:
            ServeError: it ended `CRASH_LIMIT` times within `CRASH_WINDOW_SECONDS`.
        """
        if self._process is None or not self._has_ended():
            return False
        now = time.monotonic()
        exit_status = self._reap()
        logger.error("%s ended unexpectedly: %s", self.name, exit_status)
        self._crashes.append(now)
        if len(self._crashes) == CRASH_LIMIT and now - self._crashes[0] < CRASH_WINDOW_SECONDS:
            raise ServeError(
                f"{self.name} ended {CRASH_LIMIT} times within {CRASH_WINDOW_SECONDS:g} seconds "
                f"(last: {exit_status}); its output is above"
            )
        self.start()
        return True

    def terminate(self) -> float:
        """Send SIGTERM, once. Returns the end of the grace period, by the monotonic clock."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self.grace_seconds
            if self._process is not None:
                self._process.terminate()
        return self._deadline

    def stop(self, hurry: Callable[[], bool]) -> None:
        """Send SIGTERM, wait for the grace period, then send SIGKILL to the rest of its group.

        Args:
            hurry: once it returns true, the grace period is over.
        """
        deadline = self.terminate()
        if self._process is None:
            return
        while not self._has_ended() and time.monotonic() < deadline and not hurry():
            time.sleep(0.05)
        if not self._has_ended():
            logger.warning("%s did not stop in time: killed", self.name)
        logger.info("%s stopped: %s", self.name, self._reap())

    def _has_ended(self) -> bool:
        """Whether it ended. It is not reaped, so its process id cannot be reused."""
        assert self._process is not None
        if self._process.returncode is not None:
            return True
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, options) is not None

    def _reap(self) -> str:
        """Kill the rest of its group; returns its exit status in words."""
        assert self._process is not None
        if self._process.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)
        status = self._process.wait()
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
