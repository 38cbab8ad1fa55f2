"""One attempt at a job: claim it, run the engine, store its events and artifacts, end the attempt.

The outcome is decided after the engine's process has ended. The lease fences every write.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, assert_never

from sqlalchemy.orm import Session

from app.blobs.protocol import BlobStore, get_to_file
from app.broker import JobQueue
from app.errors import DISK_FULL, StorageUnavailableError
from app.logs import log_fields
from app.settings import Settings
from app.store import datasets, jobs
from app.store.engine import Store, database_now
from td3engine.contract import CHECKPOINT_FILE, EXIT_UNUSABLE
from td3engine.errors import DeviceError
from td3engine.events import (
    ArtifactFile,
    CheckpointWritten,
    Note,
    PhaseStarted,
    Progress,
    RunRefused,
    RunSucceeded,
    parse_event,
)
from worker.engine_process import EngineProcess, engine_logger
from worker.folders import work_folder
from worker.lease_heartbeat import LeaseHeartbeat, LeaseLostError
from worker.metrics import WorkerMetrics

_PROGRESS_SECONDS = 1.0  # at most one progress event is stored in this time
_MESSAGE_CHARACTERS = 8000
_CLAIM_RETRY_SECONDS = 1.0

T = TypeVar("T")
logger = logging.getLogger(__name__)


def run_job(
    job_id: str,
    *,
    store: Store,
    blobs: BlobStore,
    queue: JobQueue,
    settings: Settings,
    stopping: threading.Event,
    metrics: WorkerMetrics,
) -> None:
    """Run a job if it is queued. A duplicate delivery of its id does nothing.

    Returns once this worker may take another job; after a failure of the worker itself, that is
    only after a pause. While the database does not answer, it waits: an id that it let go would
    wait for a janitor.

    Args:
        job_id: from the broker.
        store: has the job.
        blobs: has the dataset, and takes checkpoints and artifacts.
        queue: takes the id again if the job is queued again.
        settings: of the service.
        stopping: set when this worker shuts down. The job then goes back to the queue.
        metrics: count the attempt.
    """
    while not stopping.is_set():
        try:
            lease = _claim(job_id, store, settings)
            break
        except StorageUnavailableError as error:
            logger.warning("%s: not claimed yet, the database does not answer: %s", job_id, error)
            stopping.wait(_CLAIM_RETRY_SECONDS)
    else:
        queue.publish(store, job_id)  # for another worker
        return
    if lease is None:
        logger.info("%s: not queued (any more), nothing to do", job_id)
        return
    with log_fields(job_id=job_id, attempt=lease.attempt, request_id=lease.request_id):
        logger.info("claimed")
        metrics.claimed(lease.waited)
        outcome = "lost"
        try:
            with LeaseHeartbeat(store, lease, settings) as heartbeat:
                attempt = Attempt(
                    store=store,
                    blobs=blobs,
                    lease=lease,
                    settings=settings,
                    heartbeat=heartbeat,
                    stopping=stopping,
                )
                outcome = attempt.run()
        finally:
            metrics.ended(outcome)
        logger.info("now %s", outcome)
        if attempt.worker_failed:
            # A pause without jobs; a janitor sends the id again. Otherwise this worker would use up
            # the attempts of all queued jobs within seconds.
            seconds = settings.republish_after_seconds
            logger.warning("in trouble: no job is taken for %g s", seconds)
            stopping.wait(seconds)
        elif outcome == "queued" and not attempt.device_missing:
            queue.publish(store, job_id)


def _claim(job_id: str, store: Store, settings: Settings) -> jobs.Lease | None:
    with store.write() as session:
        return jobs.claim(
            session,
            job_id,
            owner=f"{socket.gethostname()}:{os.getpid()}",
            lease=timedelta(seconds=settings.lease_seconds),
            now=database_now(session),
        )


@dataclass(kw_only=True)
class Attempt:
    """An attempt and its state.

    Attributes:
        stop_requested_at: when the engine got SIGTERM, by the monotonic clock.
        engine_hangs: it was silent for too long and was killed.
        engine_responded: it has printed at least one event.
        worker_failed: the failure concerns this worker rather than the job.
        device_missing: this worker lacks the device that the job asks for. A janitor sends the id
            again, for another worker.
        result: the engine's result event.
        error: the engine's error event.
        progress: the latest progress event, if it is not stored yet.
        progress_stored_at: when a progress event was last stored, by the monotonic clock.
    """

    store: Store
    blobs: BlobStore
    lease: jobs.Lease
    settings: Settings
    heartbeat: LeaseHeartbeat
    stopping: threading.Event
    stop_requested_at: float | None = None
    engine_hangs: bool = False
    worker_failed: bool = False
    device_missing: bool = False
    engine_responded: bool = False
    result: RunSucceeded | None = None
    error: RunRefused | None = None
    progress: Progress | None = None
    progress_stored_at: float = -_PROGRESS_SECONDS

    def run(self) -> str:
        """Run the attempt. Returns the job's status after it, or `lost` if the lease was lost."""
        try:
            with work_folder(self.settings.data_dir / "work", self.lease.job_id) as folder:
                command = self._prepare(folder)
                if self._should_stop():
                    return self._release()
                exit_code, tail = self._run_engine(command, folder / "out")
                return self._conclude(exit_code, tail, folder / "out")
        except LeaseLostError:
            logger.warning("lease lost: the engine is dead, the job is left alone")
            return "lost"
        except Exception as error:  # the engine is dead by now; the job must not stay `running`
            logger.exception("the worker failed")
            self.worker_failed = True
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                return self._release_for_disk()
            return self._give_up("worker_error", f"{type(error).__name__}: {error}")

    def _prepare(self, folder: Path) -> list[str]:
        """Write the engine's input files; returns its command line."""
        log_path, config_path, out = folder / "log.parquet", folder / "config.json", folder / "out"
        out.mkdir()
        fingerprint, config, checkpoint = self.heartbeat.retry(self._read_job)
        config_path.write_text(json.dumps(config))
        self._fetch(fingerprint, log_path)
        if checkpoint is not None:
            self._fetch(checkpoint, out / CHECKPOINT_FILE)
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
        # The dataset of a job that is not over cannot be deleted.
        assert dataset is not None
        assert dataset.fingerprint is not None
        return dataset.fingerprint, job.config, job.checkpoint_sha256

    def _fetch(self, sha256: str, path: Path) -> None:
        self.heartbeat.retry(lambda: get_to_file(self.blobs, sha256, path))

    # --- while the engine runs -----------------------------------------------------------------

    def _run_engine(self, command: list[str], out: Path) -> tuple[int, str]:
        """Run the engine to its end; returns its exit code and the tail of its stderr."""
        with EngineProcess(command) as process:
            logger.info("engine started, process %d", process.pid)
            last_line_at = time.monotonic()
            for line in process.lines():
                if line is not None:
                    self._handle_line(line, out)
                    # After the handling, which waits during an outage of the database.
                    last_line_at = time.monotonic()
                self._store_progress(at_once=False)
                self._watch(process, last_line_at)
            exit_code = process.end()
        logger.info("engine ended with %s", _describe_exit(exit_code))
        self._store_progress(at_once=True)
        return exit_code, process.tail()

    def _watch(self, process: EngineProcess, last_line_at: float) -> None:
        """Stop the engine where that is due: lease lost, hanging, cancelled, or shutting down."""
        if self.heartbeat.lease_lost.is_set():
            raise LeaseLostError  # leaving the `with` block kills the engine
        silent = time.monotonic() - last_line_at > self.settings.engine_silence_seconds
        if silent and not self.engine_hangs:
            logger.warning("the engine hangs: killed")
            self.engine_hangs = True
            process.kill()
        if self.stop_requested_at is None:
            if self._should_stop():
                logger.info("asking the engine to stop")
                self.stop_requested_at = time.monotonic()
                process.terminate()
        elif time.monotonic() - self.stop_requested_at > self.settings.cancel_grace_seconds:
            logger.warning("the engine did not stop in time: killed")
            process.kill()

    def _should_stop(self) -> bool:
        return self.heartbeat.cancel_requested.is_set() or self.stopping.is_set()

    def _handle_line(self, line: bytes, out: Path) -> None:
        event = parse_event(line)
        if event is None:
            engine_logger.info("%s", line[:2000].decode(errors="replace").rstrip())
            return
        self.engine_responded = True
        if not isinstance(event, Progress):
            self._store_progress(at_once=True)  # keeps the events in order
        match event:
            case PhaseStarted():
                self._record("phase", {"phase": event.phase})
            case Progress():
                self.progress = event
            case CheckpointWritten():
                self._store_checkpoint(event, out)
            case Note():
                message = event.message[:_MESSAGE_CHARACTERS]
                self._record("log", {"level": event.level, "message": message})
            case RunSucceeded():
                self.result = event
            case RunRefused():
                self.error = event
            case _:
                assert_never(event)

    def _store_progress(self, *, at_once: bool) -> None:
        """Store the latest progress event, unless one was stored a moment ago."""
        due = time.monotonic() - self.progress_stored_at >= _PROGRESS_SECONDS
        if self.progress is not None and (due or at_once):
            self._record("progress", _stored_fields(self.progress))
            self.progress = None
            self.progress_stored_at = time.monotonic()

    def _store_checkpoint(self, event: CheckpointWritten, out: Path) -> None:
        if self.heartbeat.cancel_requested.is_set():
            return
        # The engine may replace the file meanwhile; the open one keeps its bytes.
        try:
            sha256, size = self.heartbeat.retry(lambda: self.blobs.put_file(out / event.path))
        except FileNotFoundError:
            # After an outage of the database: the engine has finished and removed the file.
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
        """Run `change` in a transaction of its own; retry while the database does not answer."""

        def call() -> T:
            with self.store.write() as session:
                return change(session)

        return self.heartbeat.retry(call)

    # --- after the engine's end ----------------------------------------------------------------

    def _conclude(self, exit_code: int, tail: str, out: Path) -> str:
        """End the attempt by how the engine ended; returns the job's status."""
        if self.heartbeat.cancel_requested.is_set():
            return self._release()
        if exit_code == 0 and self.result is not None:
            return self._publish(self.result, out)
        if exit_code == EXIT_UNUSABLE:
            return self._refuse(tail)
        if self.stop_requested_at is not None:
            return self._release()
        if self.engine_hangs:
            seconds = self.settings.engine_silence_seconds
            return self._give_up("engine_hangs", f"The engine said nothing for {seconds:g} s.")
        reason = f" {self.error.message[:2000]}" if self.error else ""
        message = f"The engine ended with {_describe_exit(exit_code)}.{reason}"
        self.worker_failed = not self.engine_responded  # it cannot even start on this worker
        return self._give_up("engine_crashed", f"{message}\n{tail}".strip())

    def _refuse(self, tail: str) -> str:
        error = self.error
        self.device_missing = error is not None and error.code == DeviceError.code
        return self._give_up(
            error.code if error else "engine_refused",
            error.message if error else f"The engine refused the job.\n{tail}",
            permanent=not self.device_missing,
        )

    def _publish(self, result: RunSucceeded, out: Path) -> str:
        self._record("phase", {"phase": "publishing"})
        artifacts = [self._store_artifact(file, out) for file in result.artifacts]

        def change(session: Session) -> bool:
            now = database_now(session)
            return jobs.succeed(
                session, self.lease, artifacts=artifacts, metrics=result.metrics, now=now
            )

        # False: a cancel came first, or the lease is lost.
        return "succeeded" if self._write(change) else self._release()

    def _store_artifact(self, file: ArtifactFile, out: Path) -> jobs.StoredArtifact:
        sha256, size = self.heartbeat.retry(lambda: self.blobs.put_file(out / file.path))
        return jobs.StoredArtifact(file.name, file.media_type, size, sha256)

    def _release(self) -> str:
        """Cancel the job if that was requested, else queue it again without counting this start."""
        return self._write(lambda session: jobs.release(session, self.lease, database_now(session)))

    def _release_for_disk(self) -> str:
        """Queue the job again without counting this start, and record the reason as an event."""
        message = "The worker's disk is full: the job waits for room, or for another worker."
        try:
            self._record("log", {"level": "warning", "message": message})
            return self._release()
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


def _stored_fields(progress: Progress) -> dict[str, Any]:
    """The fields of a progress event, as the job's event and the API have them."""
    return {name: value for name, value in asdict(progress).items() if name != "event"}
