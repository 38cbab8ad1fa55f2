"""A service as a library: `Client.distill` returns the same `Summary` as the local call.

Requests need no torch. The summary does, so its module is imported when it has arrived.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from td3engine import client
from td3engine.client import Job
from td3engine.config import Preset
from td3engine.contract import MANIFEST_FILE
from td3engine.errors import OutputExistsError, UnusableError
from td3engine.pipeline.progress_bar import PhaseBars

if TYPE_CHECKING:
    from td3engine.api.summary import Summary


class JobFailedError(UnusableError):
    """A job ended without a summary; the message holds its status and error."""

    code = "job_failed"


class Client(client.Client):
    """A client of a running service.

    Besides `distill` it has one method for each call of the service: `create_job`, `job`, `events`,
    `wait`, `download_summary` and others (`td3engine.client.Client`).
    """

    def distill(
        self,
        log: str | Path,
        *,
        preset: Preset = "balanced",
        config: Mapping[str, Any] | None = None,
        seed: int | None = None,
        folder: str | Path | None = None,
        name: str | None = None,
        progress: bool = False,
    ) -> "Summary":
        """Upload a log, distil it on the service, and download the summary.

        Args:
            log: path of the file.
            preset: how much work to put in: `fast`, `balanced`, `quality`, or `auto` (by the log).
            config: settings that override the preset, nested, e.g. `{"summary": {"users": 50}}`.
            seed: of the run; None: the configuration's.
            folder: where the summary's files are saved; None: they are not.
            name: of the job, shown in lists.
            progress: whether to show progress bars.

        Returns:
            The summary.

        Raises:
            OutputExistsError: the folder holds a summary.
            JobFailedError: the job failed or was cancelled.
            ServiceError: the service refused the log or the settings.
        """
        from td3engine.api.summary import Summary

        if folder is not None and (Path(folder) / MANIFEST_FILE).exists():
            raise OutputExistsError(f"{folder} holds a summary already; take another folder")
        job = self.create_job(file=Path(log), preset=preset, config=config, seed=seed, name=name)
        job = self.follow(job.id, Console()) if progress else self.wait(job.id)
        if job.status != "succeeded":
            raise JobFailedError(f"{job.id} is {job.status}: {job.error}")
        with tempfile.TemporaryDirectory(prefix="td3-") as temporary:
            target = Path(folder if folder is not None else temporary)
            self.download_summary(job.id, target)
            return Summary.load(target)

    def follow(self, job_id: str, console: Console) -> Job:
        """Show a job's progress bars until it ends; returns the job as it is then."""
        with PhaseBars(console) as bars:
            for event in self.events(job_id):
                bars.show_event(event.type, event.data)
        return self.job(job_id)
