"""Talk to a running service: upload a log, distil it, watch it, fetch the summary.

with Client("http://127.0.0.1:8000") as client:
    job = client.create_job(file=Path("ratings.csv"), preset="fast")
    for event in client.events(job.id):
        print(event.type, event.data)
    client.download_summary(job.id, Path("summary"))

A call that makes something carries an idempotency key. The client sends it again when the
connection breaks, and the service still does it once.
"""

import hashlib
import json
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import httpx
from pydantic import TypeAdapter

from td3engine.client.answers import PAUSES, Patience, check, patiently, read, read_json, require
from td3engine.client.wire import (
    Artifact,
    Dataset,
    DownloadError,
    Event,
    Job,
    MetricsPoint,
    ServiceError,
)
from td3engine.config import Preset
from td3engine.contract import SUMMARY_FILES

API_KEY_VARIABLE = "TD3_API_KEY"

_LONGEST_WAIT_SECONDS = 45  # as the service; proxies give up after a minute
_THIS_MACHINE = frozenset({"127.0.0.1", "::1", "localhost"})
# The service sends a heartbeat every 15 seconds, and answers a wait well before this.
_TIMEOUT = httpx.Timeout(90, connect=10)
_RECONNECT_TRIES = 10
_GAVE_UP = 504  # a proxy, on the service
_EVENT_STREAM = "text/event-stream"

_Jobs = TypeAdapter(list[Job])
_Points = TypeAdapter(list[MetricsPoint])


class Client:
    """A service, by its URL.

    Every call raises `ServiceError` where the service refuses it, `UnexpectedAnswerError` (one of
    these) where something else answers, and `httpx.TransportError` where the service cannot be
    reached. A call that reads, or that carries an idempotency key, is sent again for a while where
    the service or a proxy is busy (429, 502, 503, 504) or cannot be reached.
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
        self,
        path: Path | Sequence[Path],
        name: str | None = None,
        *,
        columns: Mapping[str, str | int] | None = None,
        dialect: Mapping[str, str | bool] | None = None,
        idempotency_key: str | None = None,
    ) -> Dataset:
        """Upload a log.

        Args:
            path: CSV, TSV, RecBole .inter, JSON lines or Parquet; text also with gzip, zstd, bzip2
                or xz. Several files are one log.
            name: shown in lists; the file's name otherwise.
            columns: names of the file's columns, or positions, by `user`, `item`, `time`.
            dialect: `delimiter`, `header` and `time_format` of a text file.
            idempotency_key: what makes a call of another process the same as this one.
        """
        fields = {"name": name, "columns": json.dumps(dict(columns)) if columns else None}
        fields["dialect"] = json.dumps(dict(dialect)) if dialect else None
        paths = [path] if isinstance(path, Path) else path
        return read(Dataset, self._send_files("/datasets", paths, fields, idempotency_key))

    def create_job(
        self,
        dataset_id: str | None = None,
        *,
        file: Path | None = None,
        preset: Preset = "balanced",
        config: Mapping[str, Any] | None = None,
        seed: int | None = None,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        webhook: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Distil a dataset, or a file that is uploaded with the request.

        Args:
            dataset_id, file: exactly one of them.
            preset: what `config` is laid over.
            config: part of a `DistillConfig`.
            seed: short for `config["seed"]`.
            name: shown in lists.
            metadata: your own words for it.
            webhook: `url` and `secret` of who is told of the job's end.
            idempotency_key: what makes a call of another process the same as this one.

        Raises:
            ValueError: both or none of `dataset_id` and `file`.
        """
        request: dict[str, Any] = {"preset": preset, "config": dict(config or {}), "name": name}
        request |= {"seed": seed, "metadata": dict(metadata or {})}
        request["webhook"] = dict(webhook) if webhook is not None else None
        if file is not None and dataset_id is None:
            fields = {"request": json.dumps(request)}
            return read(Job, self._send_files("/jobs", [file], fields, idempotency_key))
        if dataset_id is not None and file is None:
            content = {"dataset_id": dataset_id, **request}
            return self._make_job("/jobs", idempotency_key, json=content)
        raise ValueError("give either a dataset_id or a file")

    def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """A new job of the same request; `ServiceError` with code `job_not_over` before its end."""
        return self._make_job(f"/jobs/{job_id}/retry", idempotency_key)

    def dataset(self, dataset_id: str) -> Dataset:
        """One dataset."""
        return read(Dataset, self._get(f"/datasets/{dataset_id}"))

    def job(self, job_id: str) -> Job:
        """One job, as it is now."""
        return read(Job, self._get(f"/jobs/{job_id}"))

    def jobs(self, *, status: str | None = None, dataset_id: str | None = None) -> Iterator[Job]:
        """Jobs, newest first. Pages are fetched as the iterator needs them."""
        filters = {"status": status, "dataset_id": dataset_id}
        params: dict[str, Any] = {key: value for key, value in filters.items() if value is not None}
        while True:
            page = read_json(self._get("/jobs", params=params))
            jobs = _Jobs.validate_python(page["data"])
            yield from jobs
            if not page["has_more"]:
                return
            params["after"] = jobs[-1].id

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """Waits for the end of a job and returns it.

        It goes on after failures that may pass, such as a restart of the service or a proxy that
        gave up, for about half a minute.

        Raises:
            TimeoutError: the job is not over after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        longest, status = _LONGEST_WAIT_SECONDS, "unknown"
        patience = Patience(_RECONNECT_TRIES)
        while True:
            left = longest if deadline is None else deadline - time.monotonic()
            seconds = max(0, min(longest, math.ceil(left)))
            headers = {"Prefer": f"wait={seconds}"}
            try:
                job = read(Job, self._http.get(f"/jobs/{job_id}", headers=headers))
            except (httpx.TransportError, ServiceError) as error:
                patience.pause_after(error, deadline)
                if isinstance(error, ServiceError) and error.problem.status == _GAVE_UP:
                    longest = max(1, longest // 2)  # a proxy that waits less than usual
            else:
                if job.is_over:
                    return job
                status, patience = job.status, Patience(_RECONNECT_TRIES)
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{job_id} is {status} after {timeout:g} seconds")

    def events(self, job_id: str, after: int = 0) -> Iterator[Event]:
        """Events with a sequence above `after`, past and future, until the job is over.

        After a broken connection the stream resumes where it stopped: no event is lost or doubled.

        Raises:
            httpx.TransportError, ServiceError: the service could not be reached or was busy for
                about half a minute, or refused.
        """
        patience = Patience(_RECONNECT_TRIES)
        while True:
            headers = {"Accept": _EVENT_STREAM, "Last-Event-ID": str(after)}
            try:
                with self._http.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
                    if check(answer).status_code == httpx.codes.NO_CONTENT:
                        return  # the job is over, and this was all
                    require(answer, _EVENT_STREAM)
                    patience, before = Patience(_RECONNECT_TRIES), after
                    for data in _server_sent_data(answer.iter_lines()):
                        event = Event.model_validate_json(data)
                        after = event.sequence
                        yield event
                if after == before:  # the server stops: it ends every stream at once
                    time.sleep(PAUSES[0])
            except (httpx.TransportError, ServiceError) as error:
                patience.pause_after(error)

    def cancel(self, job_id: str) -> Job:
        """Ask for the job's end; `ServiceError` with code `job_is_over` when it has ended."""
        return read(Job, self._http.post(f"/jobs/{job_id}/cancel"))

    def delete_job(self, job_id: str) -> None:
        """Delete a job that is over, with all that it made."""
        check(self._http.delete(f"/jobs/{job_id}"))

    def delete_dataset(self, dataset_id: str) -> None:
        """Delete a dataset; `ServiceError` with code `dataset_in_use` while a job needs it."""
        check(self._http.delete(f"/datasets/{dataset_id}"))

    def metrics(self, job_id: str) -> Iterator[MetricsPoint]:
        """Points of the job's progress so far. Pages are fetched as the iterator needs them."""
        params: dict[str, Any] = {}
        while True:
            page = read_json(self._get(f"/jobs/{job_id}/metrics", params=params))
            points = _Points.validate_python(page["data"])
            yield from points
            if not page["has_more"]:
                return
            params["after"] = points[-1].sequence

    def download_summary(self, job_id: str, folder: Path) -> list[Path]:
        """Write the summary's three files to `folder`, each complete and checked, or not at all.

        Raises:
            DownloadError: the bytes are not those that the job made.
        """
        job = self.job(job_id)
        if job.status != "succeeded":  # the service says best why there is no summary
            self._get(f"/jobs/{job_id}/summary")
            job = self.job(job_id)  # it has become one meanwhile
        artifacts = {artifact.name: artifact for artifact in job.artifacts}
        folder.mkdir(parents=True, exist_ok=True)
        return [self._download(artifacts[name], folder / name) for name in SUMMARY_FILES]

    def _download(self, artifact: Artifact, target: Path) -> Path:
        part = target.with_name(f".{target.name}.part")
        patience = Patience(_RECONNECT_TRIES)
        try:
            with part.open("wb") as file:
                while True:
                    before = file.tell()
                    try:
                        self._fetch_rest(artifact, file)
                        break
                    except (httpx.TransportError, ServiceError) as error:
                        if file.tell() >= artifact.bytes:
                            break  # at the very end: the checksum will tell
                        if file.tell() > before:
                            patience = Patience(_RECONNECT_TRIES)
                        patience.pause_after(error)
            with part.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != artifact.sha256:
                    raise DownloadError(f"{artifact.name} came down damaged")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target

    def _fetch_rest(self, artifact: Artifact, file: BinaryIO) -> None:
        """Append what the file still lacks; all of it where the service sends the whole."""
        headers = {}
        if file.tell():
            headers = {"Range": f"bytes={file.tell()}-", "If-Range": f'"{artifact.sha256}"'}
        with self._http.stream("GET", artifact.href, headers=headers) as answer:
            if check(answer).status_code != httpx.codes.PARTIAL_CONTENT:
                file.seek(0)
                file.truncate()
            for chunk in answer.iter_bytes():
                file.write(chunk)

    def _get(self, url: str, **options: Any) -> httpx.Response:
        return patiently(lambda: self._http.get(url, **options))

    def _make_job(self, url: str, key: str | None, **content: Any) -> Job:
        headers = _idempotent(key)
        answer = patiently(lambda: self._http.post(url, headers=headers, **content))
        return read(Job, answer)

    def _send_files(
        self, url: str, paths: Sequence[Path], fields: Mapping[str, str | None], key: str | None
    ) -> httpx.Response:
        data = {name: value for name, value in fields.items() if value is not None}
        headers = _idempotent(key)

        def send() -> httpx.Response:
            with ExitStack() as opened:
                files = [(path.name, opened.enter_context(path.open("rb"))) for path in paths]
                # Reading a large log takes the service a while before it answers.
                return self._http.post(
                    url,
                    data=data,
                    files=[("file", file) for file in files],
                    headers=headers,
                    timeout=httpx.Timeout(None, connect=10),
                )

        return patiently(send)


def _idempotent(key: str | None) -> dict[str, str]:
    """The header by which a request that is sent twice is done once."""
    return {"Idempotency-Key": key or uuid.uuid4().hex}


def _server_sent_data(lines: Iterator[str]) -> Iterator[str]:
    """The data of each complete server-sent event; id and type are in the data as well."""
    data: list[str] = []
    for line in lines:
        if not line and data:
            yield "\n".join(data)
            data.clear()
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
