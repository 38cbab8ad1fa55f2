"""Child processes of `app.standalone.serve`: started, watched, started again, stopped."""

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

MOST_ENDS = 3
WITHIN_SECONDS = 60.0


class ServeError(Exception):
    """The service cannot go on; the text says why, for the user."""


class Child:
    """One process, in a session of its own so that Ctrl-C in the terminal reaches only its parent.

    The kernel kills it with its parent, so not even `kill -9` of the parent leaves it behind. To be
    started from the main thread: the kernel means the thread that starts it.
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
        self._ends: deque[float] = deque(maxlen=MOST_ENDS)
        self._deadline: float | None = None  # to be gone by, once it was asked to stop

    @property
    def pid(self) -> int:
        """Its process id; 0 before the first start."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Start it. What it prints goes to our stderr: our stdout is for programs."""
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
        """Start it again if it has ended. Returns whether it had.

        Raises:
            ServeError: it ended too often in too short a time.
        """
        if self._process is None or not self._has_ended():
            return False
        now = time.monotonic()
        how = self._reap()
        logger.error("%s ended unexpectedly: %s", self.name, how)
        self._ends.append(now)
        if len(self._ends) == MOST_ENDS and now - self._ends[0] < WITHIN_SECONDS:
            raise ServeError(
                f"{self.name} ended {MOST_ENDS} times within {WITHIN_SECONDS:g} seconds "
                f"(last: {how}); its output is above"
            )
        self.start()
        return True

    def terminate(self) -> float:
        """SIGTERM, once; returns when its grace period ends (by the monotonic clock)."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self.grace_seconds
            if self._process is not None:
                self._process.terminate()
        return self._deadline

    def stop(self, hurry: Callable[[], bool]) -> None:
        """SIGTERM, a grace period (none once `hurry()` is true), then SIGKILL to what is left."""
        deadline = self.terminate()
        if self._process is None:
            return
        while not self._has_ended() and time.monotonic() < deadline and not hurry():
            time.sleep(0.05)
        if not self._has_ended():
            logger.warning("%s did not stop in time: killed", self.name)
        logger.info("%s stopped: %s", self.name, self._reap())

    def _has_ended(self) -> bool:
        """Whether it ended; leaves it unreaped, so that its number stays its own."""
        assert self._process is not None
        if self._process.returncode is not None:
            return True
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, options) is not None

    def _reap(self) -> str:
        """Kill what is left of its group; how it ended, in words."""
        assert self._process is not None
        if self._process.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)
        status = self._process.wait()
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
