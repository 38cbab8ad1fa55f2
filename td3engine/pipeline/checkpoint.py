"""The checkpoint of a run: one file, written whole or not at all, at limited cost."""

import time
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from td3engine.contract import CHECKPOINT_FILE
from td3engine.errors import CheckpointMismatchError, DamagedCheckpointError
from td3engine.files import atomic_file
from td3engine.runtime.distributed import ProcessGroup

CHECKPOINT_SHARE = 0.01  # largest share of the running time that is spent on checkpoints

State = Callable[[], dict[str, Any]]
"""Collects all that the next step depends on; every process must call it."""


class Checkpoint:
    """A run's checkpoint file. All processes call the methods; the main process does the I/O.

    Args:
        folder: of the run.
        identity: identifies log and configuration; a file with another identity is refused.
        min_seconds: least time between two checkpoints; 0: one after each step. The time is longer
            if writing is slow, so that at most `CHECKPOINT_SHARE` is spent on it.
        group: the processes of the run.
        device: where tensors are loaded to.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, str],
        min_seconds: float,
        group: ProcessGroup,
        device: torch.device,
    ) -> None:
        self.path = folder / CHECKPOINT_FILE
        self.identity, self.min_seconds = identity, min_seconds
        self.group, self.device = group, device
        self._last = time.monotonic()
        self._duration = 0.0

    def read(self) -> dict[str, Any]:
        """The content of the file, in every process; empty if there is no file.

        Raises:
            CheckpointMismatchError: the file belongs to another log or configuration.
            DamagedCheckpointError: the file cannot be read.
        """
        on_main: dict[str, Any] = {}
        if self.group.is_main and self.path.exists():
            on_main = self._load()
        stored: dict[str, Any] = self.group.broadcast(on_main, self.device)
        if stored and any(stored.get(name) != value for name, value in self.identity.items()):
            raise CheckpointMismatchError(
                f"{self.path} belongs to another log, configuration or release"
            )
        return stored

    def _load(self) -> dict[str, Any]:
        try:
            content = torch.load(self.path, map_location=self.device, weights_only=True)
        # What torch raises of a damaged file, by where the damage is.
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, UnpicklingError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DamagedCheckpointError(f"{self.path} is damaged ({reason[:200]})") from error
        if not isinstance(content, dict):
            raise DamagedCheckpointError(f"{self.path} is damaged (it holds no checkpoint)")
        return content

    @property
    def is_due(self) -> bool:
        """Whether enough time has passed since the last checkpoint."""
        least = self.min_seconds
        wait = max(least, self._duration / CHECKPOINT_SHARE) if least else 0.0
        return time.monotonic() - self._last >= wait

    def write(
        self,
        state: State,
        seconds: Callable[[], dict[str, float]],
        on_written: Callable[[Path], None],
    ) -> None:
        """Write the file, in the main process.

        Args:
            state: collects the content; called in every process.
            seconds: returns the wall time by phase; called once the content is complete.
            on_written: called with the path once the file is complete.
        """
        began = time.monotonic()
        content = state()
        if not self.group.is_main:
            return
        # A fixed name, since the file is large: a killed process leaves at most one behind.
        with atomic_file(self.path, self.path.with_suffix(".part")) as file:
            torch.save({**self.identity, "seconds": seconds(), **content}, file)
        on_written(self.path)
        self._last = time.monotonic()
        self._duration = self._last - began

    def remove(self) -> None:
        """Delete the file, at the end of the run."""
        self.path.unlink(missing_ok=True)
