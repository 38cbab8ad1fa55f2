"""Talk to a running service: upload a log, distil it, watch it, fetch the summary.

with Client("http://127.0.0.1:8000") as client:
    job = client.create_job(file=Path("ratings.csv"), preset="fast")
    for event in client.events(job.id):
        print(event.type, event.data)
    client.download_summary(job.id, Path("summary"))
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from td3engine.config import Preset

API_KEY_VARIABLE = "TD3_API_KEY"
SUMMARY_FILES = ("manifest.json", "items.parquet", "summary.safetensors")
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
_LONGEST_WAIT_SECONDS = 60
_THIS_MACHINE = frozenset({"127.0.0.1", "::1", "localhost"})
# The service sends a heartbeat every 15 seconds, and answers a wait within a minute.
_TIMEOUT = httpx.Timeout(90, connect=10)
_RECONNECT_SECONDS = (0.2, 5.0)  # first and longest pause
_RECONNECT_TRIES = 10


class Problem(BaseModel):
    """What the service says about a request that it refused (RFC 9457)."""

    status: int
    title: str = ""
    detail: str = ""
    code: str = "unknown"
    request_id: str | None = None
    param: str | None = None
    errors: list[dict[str, Any]] | None = None
    line: int | None = None
    column: str | None = None


class ServiceError(Exception):
    """The service refused or failed a request; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.detail or problem.title} ({problem.code})")
        self.problem = problem


class DownloadError(Exception):
    """What came down is not what the job made."""


class Dataset(BaseModel):
    """An uploaded log."""

    id: str
    name: str
    created_at: datetime
    fingerprint: str
    source_sha256: str
    source_bytes: int
    statistics: dict[str, Any]


class Artifact(BaseModel):
    """A file that a job made."""

    name: str
    media_type: str
    bytes: int
    sha256: str
    href: str


class Job(BaseModel):
    """A distillation."""

    id: str
    name: str | None
    dataset_id: str
    preset: str
    config: dict[str, Any]
    status: str
    phase: str | None
    progress: dict[str, Any] | None
    metrics: dict[str, Any] | None
    error: dict[str, Any] | None
    attempt: int
    max_attempts: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    artifacts: list[Artifact]

    @property
    def is_over(self) -> bool:
        """Whether it has succeeded, failed or was cancelled."""
        return self.status in TERMINAL


class Event(BaseModel):
    """Something that happened to a job."""

    sequence: int
    type: str
    created_at: datetime
    data: dict[str, Any]


Model = TypeVar("Model", bound=BaseModel)
_Jobs = TypeAdapter(list[Job])


class Client:
    """A service, by its URL. Every call raises `ServiceError` where the service refuses, and
    `httpx.TransportError` where it cannot be reached.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """
        Args:
            url: the service.
            api_key: sent with every request; by default that of the environment variable
                `TD3_API_KEY`, if there is one. Empty: none.
        """
        key = os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key
        # A proxy that the environment names cannot reach a service on this machine.
        elsewhere = httpx.URL(url).host not in _THIS_MACHINE
        self._http = httpx.Client(
            base_url=url,
            timeout=_TIMEOUT,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            trust_env=elsewhere,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def upload(
        self, path: Path, name: str | None = None, *, columns: Mapping[str, str] | None = None
    ) -> Dataset:
        """Upload a log.

        Args:
            path: CSV, TSV, RecBole .inter or Parquet; gzip or zstd.
            name: shown in lists; the file's name otherwise.
            columns: names of the file's columns, by `user`, `item`, `time`.
        """
        fields = {"name": name, "columns": json.dumps(dict(columns)) if columns else None}
        return _read(Dataset, self._send_file("/datasets", path, fields))

    def create_job(
        self,
        dataset_id: str | None = None,
        *,
        file: Path | None = None,
        preset: Preset = "balanced",
        config: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> Job:
        """Distil a dataset, or a file that is uploaded with the request.

        Args:
            dataset_id, file: exactly one of them.
            preset: what `config` is laid over.
            config: part of a `DistillConfig`.
            name: shown in lists.

        Raises:
            ValueError: both or none of `dataset_id` and `file`.
        """
        asked = {"preset": preset, "config": dict(config or {}), "name": name}
        if file is not None and dataset_id is None:
            return _read(Job, self._send_file("/jobs", file, {"request": json.dumps(asked)}))
        if dataset_id is not None and file is None:
            answer = self._http.post("/jobs", json={"dataset_id": dataset_id, **asked})
            return _read(Job, answer)
        raise ValueError("give either a dataset_id or a file")

    def dataset(self, dataset_id: str) -> Dataset:
        """One dataset."""
        return _read(Dataset, self._http.get(f"/datasets/{dataset_id}"))

    def job(self, job_id: str) -> Job:
        """One job, as it is now."""
        return _read(Job, self._http.get(f"/jobs/{job_id}"))

    def jobs(self, *, status: str | None = None, dataset_id: str | None = None) -> Iterator[Job]:
        """Jobs, newest first; fetched page by page as they are taken."""
        wanted = {"status": status, "dataset_id": dataset_id}
        params: dict[str, Any] = {key: value for key, value in wanted.items() if value is not None}
        while True:
            page = _check(self._http.get("/jobs", params=params)).json()
            found = _Jobs.validate_python(page["data"])
            yield from found
            if not page["has_more"]:
                return
            params["after"] = found[-1].id

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """The job once it is over.

        Raises:
            TimeoutError: it is not, after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _LONGEST_WAIT_SECONDS if deadline is None else deadline - time.monotonic()
            seconds = max(0, min(_LONGEST_WAIT_SECONDS, math.ceil(left)))
            headers = {"Prefer": f"wait={seconds}"}
            job = _read(Job, self._http.get(f"/jobs/{job_id}", headers=headers))
            if job.is_over:
                return job
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{job_id} is {job.status} after {timeout:g} seconds")

    def events(self, job_id: str, after: int = 0) -> Iterator[Event]:
        """Events with a sequence above `after`, those to come as well, until the job is over.

        A connection that breaks is made again where it stopped, so no event is lost or doubled.

        Raises:
            httpx.TransportError, ServiceError: it cannot be made again, or the service answers
                with a 5xx, for about half a minute.
        """
        failures = 0
        first, longest = _RECONNECT_SECONDS
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
            try:
                with self._http.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
                    if _check(answer).status_code == httpx.codes.NO_CONTENT:
                        return  # the job is over, and this was all
                    failures, before = 0, after
                    for data in _server_sent_data(answer.iter_lines()):
                        event = Event.model_validate_json(data)
                        after = event.sequence
                        yield event
                if after == before:  # the server stops: it ends every stream at once
                    time.sleep(first)
            except (httpx.TransportError, ServiceError) as error:
                failures += 1
                refused = isinstance(error, ServiceError) and error.problem.status < 500
                if refused or failures > _RECONNECT_TRIES:
                    raise
                time.sleep(min(first * 2**failures, longest))

    def cancel(self, job_id: str) -> Job:
        """Ask for the job's end; `ServiceError` with code `job_is_over` when it has ended."""
        return _read(Job, self._http.post(f"/jobs/{job_id}/cancel"))

    def download_summary(self, job_id: str, folder: Path) -> list[Path]:
        """Write the summary's three files to `folder`, each complete and checked, or not at all.

        Raises:
            DownloadError: the bytes are not those that the job made.
        """
        job = self.job(job_id)
        if job.status != "succeeded":  # the service says best why there is no summary
            _check(self._http.get(f"/jobs/{job_id}/summary"))
            job = self.job(job_id)  # it has become one meanwhile
        artifacts = {artifact.name: artifact for artifact in job.artifacts}
        folder.mkdir(parents=True, exist_ok=True)
        return [self._download(artifacts[name], folder / name) for name in SUMMARY_FILES]

    def _download(self, artifact: Artifact, target: Path) -> Path:
        part = target.with_name(f".{target.name}.part")
        digest = hashlib.sha256()
        try:
            with self._http.stream("GET", artifact.href) as answer, part.open("wb") as file:
                for chunk in _check(answer).iter_bytes():
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != artifact.sha256:
                raise DownloadError(f"{artifact.name} came down damaged")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target

    def _send_file(self, url: str, path: Path, fields: Mapping[str, str | None]) -> httpx.Response:
        data = {key: value for key, value in fields.items() if value is not None}
        with path.open("rb") as file:
            # Reading a large log takes the service a while before it answers.
            return self._http.post(
                url,
                data=data,
                files={"file": (path.name, file)},
                timeout=httpx.Timeout(None, connect=10),
            )


def _server_sent_data(lines: Iterator[str]) -> Iterator[str]:
    """The data of each complete server-sent event; id and type are in the data as well."""
    data: list[str] = []
    for line in lines:
        if not line and data:
            yield "\n".join(data)
            data.clear()
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))


def _read(model: type[Model], answer: httpx.Response) -> Model:
    return model.model_validate_json(_check(answer).content)


def _check(answer: httpx.Response) -> httpx.Response:
    """The answer, unless it is an error."""
    if not answer.is_error:
        return answer
    answer.read()
    try:
        problem = Problem.model_validate_json(answer.content)
    except ValidationError:  # not from the service: a proxy on the way, perhaps
        problem = Problem(status=answer.status_code, title=answer.reason_phrase)
    raise ServiceError(problem)
