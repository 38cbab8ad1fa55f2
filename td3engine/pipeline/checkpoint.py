"""The checkpoint of a run: one file, written whole or not at all, and not too often."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from td3engine.contract import CHECKPOINT_FILE
from td3engine.errors import CheckpointMismatchError
from td3engine.runtime.distributed import ProcessGroup

CHECKPOINT_SHARE = 0.01  # of the running time, at most, goes into checkpoints

State = Callable[[], dict[str, Any]]


class Checkpoint:
    """A run's checkpoint file. The main process reads and writes it; all call the methods.

    Args:
        folder: of the run.
        identity: what the run is of; a file with another identity is refused.
        least_seconds: least time between two checkpoints. Where one takes long to write the time is
            more, so that at most `CHECKPOINT_SHARE` is spent on them. Zero: after each step.
        group: the processes of the run.
        device: where tensors are loaded to.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, str],
        least_seconds: float,
        group: ProcessGroup,
        device: torch.device,
    ) -> None:
        self.path = folder / CHECKPOINT_FILE
        self.identity, self.least_seconds = identity, least_seconds
        self.group, self.device = group, device
        self._last = time.monotonic()
        self._duration = 0.0

    def read(self) -> dict[str, Any]:
        """What the file holds, in every process; empty where there is none.

        Raises:
            CheckpointMismatchError: it belongs to another log or configuration.
        """
        on_main: dict[str, Any] = {}
        if self.group.is_main and self.path.exists():
            on_main = torch.load(self.path, map_location=self.device, weights_only=True)
        stored: dict[str, Any] = self.group.broadcast(on_main, self.device)
        if stored and any(stored.get(name) != value for name, value in self.identity.items()):
            raise CheckpointMismatchError(f"{self.path} belongs to another log or configuration")
        return stored

    @property
    def is_due(self) -> bool:
        """Whether enough time has passed since the last one."""
        least = self.least_seconds
        wait = max(least, self._duration / CHECKPOINT_SHARE) if least else 0.0
        return time.monotonic() - self._last >= wait

    def write(
        self, state: State, seconds: Callable[[], dict[str, float]], written: Callable[[Path], None]
    ) -> None:
        """Write the file: under another name, synced, then renamed.

        Args:
            state: collects what the next step depends on; every process has a part in it.
            seconds: gives the wall time by phase.
            written: called with the path once the file is complete, in the main process.
        """
        began = time.monotonic()
        whole = state()
        if not self.group.is_main:
            return
        part = self.path.with_suffix(".part")
        with part.open("wb") as file:
            torch.save({**self.identity, "seconds": seconds(), **whole}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)
        written(self.path)
        self._last = time.monotonic()
        self._duration = self._last - began

    def remove(self) -> None:
        """Delete the file: the run is over."""
        self.path.unlink(missing_ok=True)
