"""One attempt at one job: claim it, run the engine on it, keep what the engine says, settle it.

What the job becomes is decided once the engine is gone, and every step is fenced by the lease.
"""

import errno
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, assert_never

from sqlalchemy.orm import Session

from app.blobs import sql as blobs
from app.broker import JobQueue
from app.logs import log_fields
from app.settings import Settings
from app.store import datasets, jobs
from app.store.engine import Store, database_now
from worker.engine_process import Child, engine_logger
from worker.events import (
    ArtifactFile,
    CheckpointEvent,
    ErrorEvent,
    LogEvent,
    PhaseEvent,
    ProgressEvent,
    ResultEvent,
    parse_event,
)
from worker.folders import work_folder
from worker.lease_heartbeat import LeaseLostError, Pulse
from worker.metrics import WorkerMetrics

EXIT_PERMANENT = 65
# The one refusal that says nothing about the job: another worker may have the device.
_NO_DEVICE = "no_device"
# No room at all, for this user, or in one file. (app.http is not for workers.)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROGRESS_SECONDS = 1.0  # the store keeps at most one progress event in so long
_MESSAGE_CHARACTERS = 8000

T = TypeVar("T")
logger = logging.getLogger(__name__)


def run_job(
    job_id: str,
    *,
    store: Store,
    queue: JobQueue,
    settings: Settings,
    stopping: threading.Event,
    metrics: WorkerMetrics,
) -> None:
    """Run a job if it is queued; a second delivery of its id finds it taken and does nothing.

    Returns once this worker may take another job: after a trouble of its own only some time later.

    Args:
        stopping: set when this worker shuts down: the job then goes back to the queue.
    """
    if stopping.is_set():
        queue.publish(store, job_id)  # for a worker that stays
        return
    with store.write() as session:
        lease = jobs.claim(
            session,
            job_id,
            owner=f"{socket.gethostname()}:{os.getpid()}",
            lease=timedelta(seconds=settings.lease_seconds),
            now=database_now(session),
        )
    if lease is None:
        logger.info("%s: not queued (any more), nothing to do", job_id)
        return
    with log_fields(job_id=job_id, attempt=lease.attempt, request_id=lease.request_id):
        logger.info("claimed")
        metrics.claimed(lease.waited)
        outcome = "lost"
        try:
            with Pulse(store, lease, settings) as pulse:
                attempt = _Attempt(
                    store=store, lease=lease, settings=settings, pulse=pulse, stopping=stopping
                )
                outcome = attempt.run()
        finally:
            metrics.ended(outcome)
        logger.info("now %s", outcome)
        if attempt.worker_failed:
            # Its id is left to the janitors, and nobody else's is taken for as long: else this
            # worker would use up the attempts of one job, or of all that wait, within seconds.
            seconds = settings.republish_after_seconds
            logger.warning("in trouble: no job is taken for %g s", seconds)
            stopping.wait(seconds)
        elif outcome == "queued" and not attempt.unsuited:
            queue.publish(store, job_id)


@dataclass(kw_only=True)
class _Attempt:
    """The state of an attempt: what the engine said, and whether it was asked to stop.

    `worker_failed`: what went wrong is about this worker rather than about the job. `unsuited`: the
    worker does well and lacks what this job wants; the janitors send it again, for another one.
    """

    store: Store
    lease: jobs.Lease
    settings: Settings
    pulse: Pulse
    stopping: threading.Event
    asked_to_stop: float | None = None
    hangs: bool = False
    worker_failed: bool = False
    unsuited: bool = False
    spoke: bool = False
    result: ResultEvent | None = None
    error: ErrorEvent | None = None
    progress: ProgressEvent | None = None  # the latest, not stored yet
    progress_stored: float = -_PROGRESS_SECONDS

    def run(self) -> str:
        """Returns what the job is now: a status, or `lost`."""
        try:
            with work_folder(self.settings.data_dir / "work", self.lease.job_id) as folder:
                command = self._prepare(folder)
                if self._should_stop():
                    return self._stopped()
                exit_code, tail = self._follow(command, folder)
                return self._settle(exit_code, tail, folder)
        except LeaseLostError:
            logger.warning("lease lost: the engine is dead, the job is left alone")
            return "lost"
        except Exception as error:  # the engine is dead by now; a job must never hang silently
            logger.exception("the worker failed")
            self.worker_failed = True
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                return self._without_room()
            return self._give_up("worker_error", f"{type(error).__name__}: {error}")

    def _prepare(self, folder: Path) -> list[str]:
        """Write what the engine reads; returns its command line."""
        log_path, config_path, out = folder / "log.parquet", folder / "config.json", folder / "out"
        out.mkdir()
        fingerprint, config, checkpoint = self.pulse.patiently(self._read_job)
        config_path.write_text(json.dumps(config))
        self._fetch(fingerprint, log_path)
        if checkpoint is not None:
            self._fetch(checkpoint, out / "checkpoint.pt")
            logger.info("resuming from checkpoint %s", checkpoint[:12])
        return [
            *self.settings.engine_command,
            *("--data", str(log_path), "--config", str(config_path), "--out", str(out)),
            *("--checkpoint-seconds", f"{self.settings.checkpoint_seconds:g}"),
        ]

    def _read_job(self) -> tuple[str, dict[str, Any], str | None]:
        with self.store.read() as session:
            job = jobs.held(session, self.lease)
            if job is None:
                raise LeaseLostError
            dataset = datasets.get(session, job.dataset_id, tenant_id=job.tenant_id)
        # Nobody deletes the dataset of a job that is not over.
        assert dataset is not None
        assert dataset.fingerprint is not None
        return dataset.fingerprint, job.config, job.checkpoint_sha256

    def _fetch(self, sha256: str, path: Path) -> None:
        self.pulse.patiently(lambda: blobs.get_to_file(self.store, sha256, path))

    # --- while the engine runs -----------------------------------------------------------------

    def _follow(self, command: list[str], folder: Path) -> tuple[int, str]:
        """Run the engine to its end; returns its exit code and the tail of its stderr."""
        with Child(command) as child:
            logger.info("engine started, process %d", child.pid)
            heard = time.monotonic()
            for line in child.lines():
                if line is not None:
                    self._take(line, folder / "out")
                    heard = time.monotonic()  # not before: taking a line may have to wait
                self._store_progress(at_once=False)
                self._watch(child, heard)
            exit_code = child.end()
        logger.info("engine ended with %s", _describe_exit(exit_code))
        self._store_progress(at_once=True)
        return exit_code, child.tail()

    def _watch(self, child: Child, heard: float) -> None:
        if self.pulse.lost.is_set():
            raise LeaseLostError  # leaving the block kills the engine
        silent = time.monotonic() - heard > self.settings.engine_silence_seconds
        if silent and not self.hangs:
            logger.warning("the engine hangs: killed")
            self.hangs = True
            child.kill()
        if self.asked_to_stop is None:
            if self._should_stop():
                logger.info("asking the engine to stop")
                self.asked_to_stop = time.monotonic()
                child.terminate()
        elif time.monotonic() - self.asked_to_stop > self.settings.cancel_grace_seconds:
            logger.warning("the engine did not stop in time: killed")
            child.kill()

    def _should_stop(self) -> bool:
        return self.pulse.cancel.is_set() or self.stopping.is_set()

    def _take(self, line: bytes, out: Path) -> None:
        event = parse_event(line)
        if event is None:
            engine_logger.info("%s", line[:2000].decode(errors="replace").rstrip())
            return
        self.spoke = True
        if not isinstance(event, ProgressEvent):
            self._store_progress(at_once=True)  # events stay in order
        match event:
            case PhaseEvent():
                self._record("phase", {"phase": event.phase})
            case ProgressEvent():
                self.progress = event
            case CheckpointEvent():
                self._keep_checkpoint(event, out)
            case LogEvent():
                message = event.message[:_MESSAGE_CHARACTERS]
                self._record("log", {"level": event.level, "message": message})
            case ResultEvent():
                self.result = event
            case ErrorEvent():
                self.error = event
            case _:
                assert_never(event)

    def _store_progress(self, *, at_once: bool) -> None:
        """Keep the latest progress, unless one was kept a moment ago."""
        due = time.monotonic() - self.progress_stored >= _PROGRESS_SECONDS
        if self.progress is not None and (due or at_once):
            self._record("progress", self.progress.model_dump(exclude={"event"}))
            self.progress = None
            self.progress_stored = time.monotonic()

    def _keep_checkpoint(self, event: CheckpointEvent, out: Path) -> None:
        if self.pulse.cancel.is_set():
            return
        # The engine may put the next one in its place meanwhile: what is open stays what it was.
        try:
            sha256, size = self.pulse.patiently(
                lambda: blobs.put_file(self.store, out / event.path)
            )
        except FileNotFoundError:
            # We are late (the database was away): the engine has finished, and removed it.
            logger.info("checkpoint at %s step %d is gone already", event.phase, event.step)
            return

        def change(session: Session) -> bool:
            now = database_now(session)
            return jobs.set_checkpoint(
                session, self.lease, sha256, now, phase=event.phase, step=event.step
            )

        if not self._write(change):
            raise LeaseLostError
        logger.info("checkpoint at %s step %d, %d bytes", event.phase, event.step, size)

    def _record(self, type_: str, data: dict[str, Any]) -> None:
        def change(session: Session) -> bool:
            return jobs.record(session, self.lease, type_, data, database_now(session))

        if not self._write(change):
            raise LeaseLostError

    def _write(self, change: Callable[[Session], T]) -> T:
        """`change` in a transaction of its own, tried again while the database does not answer."""

        def call() -> T:
            with self.store.write() as session:
                return change(session)

        return self.pulse.patiently(call)

    # --- when it is gone -----------------------------------------------------------------------

    def _settle(self, exit_code: int, tail: str, folder: Path) -> str:
        if self.pulse.cancel.is_set():
            return self._stopped()
        if exit_code == 0 and self.result is not None:
            return self._publish(self.result, folder / "out")
        if exit_code == EXIT_PERMANENT:
            return self._refused(tail)
        if self.asked_to_stop is not None:
            return self._stopped()
        if self.hangs:
            seconds = self.settings.engine_silence_seconds
            return self._give_up("engine_hangs", f"The engine said nothing for {seconds:g} s.")
        said = f" {self.error.message[:2000]}" if self.error else ""
        ended = f"The engine ended with {_describe_exit(exit_code)}.{said}"
        self.worker_failed = not self.spoke  # it cannot even start here
        return self._give_up("engine_crashed", f"{ended}\n{tail}".strip())

    def _refused(self, tail: str) -> str:
        error = self.error
        self.unsuited = error is not None and error.code == _NO_DEVICE
        return self._give_up(
            error.code if error else "engine_refused",
            error.message if error else f"The engine refused the job.\n{tail}",
            permanent=not self.unsuited,
        )

    def _publish(self, result: ResultEvent, out: Path) -> str:
        self._record("phase", {"phase": "publishing"})
        stored = [self._store_artifact(file, out) for file in result.artifacts]

        def change(session: Session) -> bool:
            now = database_now(session)
            return jobs.succeed(
                session, self.lease, artifacts=stored, metrics=result.metrics, now=now
            )

        # If not, a cancel came first, or the lease is gone.
        return "succeeded" if self._write(change) else self._stopped()

    def _store_artifact(self, file: ArtifactFile, out: Path) -> jobs.StoredArtifact:
        sha256, size = self.pulse.patiently(lambda: blobs.put_file(self.store, out / file.path))
        return jobs.StoredArtifact(file.name, file.media_type, size, sha256)

    def _stopped(self) -> str:
        """Cancelled if that was asked for, else back to the queue: nobody's fault."""
        return self._write(lambda session: jobs.release(session, self.lease, database_now(session)))

    def _without_room(self) -> str:
        """Back to the queue as well: this start does not count, and the user may read why."""
        message = "The worker's disk is full: the job waits for room, or for another worker."
        try:
            self._record("log", {"level": "warning", "message": message})
            return self._stopped()
        except LeaseLostError:
            return "lost"

    def _give_up(self, code: str, message: str, *, permanent: bool = False) -> str:
        error = {"code": code, "message": message[:_MESSAGE_CHARACTERS]}
        logger.error("%s: %s", code, message)
        try:
            return self._write(
                lambda session: jobs.give_up_attempt(
                    session, self.lease, error=error, permanent=permanent, now=database_now(session)
                )
            )
        except LeaseLostError:
            return "lost"


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    names = {-9: "SIGKILL (out of memory?)", -11: "SIGSEGV", -15: "SIGTERM", -6: "SIGABRT"}
    return f"signal {names.get(code, -code)}"
