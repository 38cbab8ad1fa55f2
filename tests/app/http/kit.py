"""A real API for tests: uvicorn in a thread, over a real database and a real broker."""

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from redis import Redis

from app.api_keys import issue
from app.blobs.protocol import BlobStore
from app.blobs.sql import SqlBlobStore
from app.broker import QUEUE
from app.main import create_app
from app.settings import Settings
from app.store import datasets, jobs, tenants
from app.store.engine import Store, open_store
from app.store.models import DEFAULT_TENANT, Scope

LOG = "user_id,item_id,timestamp\n" + "".join(f"u{i % 7},i{i % 11},{i}\n" for i in range(200))
BUNDLE = {
    "manifest.json": ("application/json", b'{"format": 1}'),
    "items.parquet": ("application/vnd.apache.parquet", b"PAR1 items"),
    "summary.safetensors": ("application/octet-stream", bytes(range(256)) * 9000),
}


def wait_for(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """What `condition` returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} seconds"
        time.sleep(0.02)
    return result


@dataclass
class Service:
    """A running API, and what a worker would do to its store."""

    url: str
    http: httpx.Client
    settings: Settings
    store: Store
    blobs: BlobStore
    broker: Redis

    def upload(self, content: str | bytes = LOG, **fields: str) -> httpx.Response:
        return self.http.post("/datasets", files={"file": ("log.csv", content)}, data=fields)

    def new_job(self, **request: Any) -> dict[str, Any]:
        answer = self.http.post("/jobs", json={"dataset_id": self.dataset(), **request})
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def key(self, scope: Scope = "write", tenant_id: str = DEFAULT_TENANT, **more: Any) -> str:
        """A new API key; makes the tenant as well."""
        expires_at: datetime | None = more.get("expires_at")
        with self.store.write() as session:
            tenants.ensure(session, tenant_id)
            _, key = issue(
                session,
                self.settings,
                tenant_id=tenant_id,
                name="test",
                scope=scope,
                expires_at=expires_at,
            )
        return key

    def dataset(self, tenant_id: str = DEFAULT_TENANT) -> str:
        """A new dataset's id; made without the reader's process, which takes a second."""
        path = self.settings.data_dir / "normalised"
        path.write_bytes(b"a normalised log")
        fingerprint, size = self.blobs.put_file(path)
        statistics = {"users": 1, "items": 1, "interactions": 1, "time_min": 0, "time_max": 0}
        with self.store.write() as session:
            tenants.ensure(session, tenant_id)
            return datasets.create(
                session,
                tenant_id=tenant_id,
                name=f"made {secrets.token_hex(4)}",
                fingerprint=fingerprint,
                source_sha256=fingerprint,
                source_bytes=size,
                statistics=statistics,
            ).id

    def claim(self, job_id: str) -> jobs.Lease:
        with self.store.write() as session:
            lease = jobs.claim(
                session, job_id, owner="test", lease=timedelta(minutes=1), now=datetime.now(UTC)
            )
        assert lease is not None
        return lease

    def progress(self, lease: jobs.Lease, step: int) -> None:
        data = {"phase": "distilling", "step": step, "total": 9, "seconds_left": 1.5, "metrics": {}}
        with self.store.write() as session:
            assert jobs.record(session, lease, "progress", data, datetime.now(UTC))

    def fail(self, lease: jobs.Lease, error: dict[str, Any]) -> None:
        """End the attempt for good: failed, or cancelled where that was asked for."""
        with self.store.write() as session:
            jobs.give_up_attempt(session, lease, error=error, permanent=True, now=datetime.now(UTC))

    def succeed(self, lease: jobs.Lease, folder: Path) -> None:
        artifacts = []
        for name, (media_type, content) in BUNDLE.items():
            path = folder / name
            path.write_bytes(content)
            sha256, size = self.blobs.put_file(path)
            artifacts.append(jobs.StoredArtifact(name, media_type, size, sha256))
        with self.store.write() as session:
            assert jobs.succeed(
                session,
                lease,
                artifacts=artifacts,
                metrics={"ndcg@10": 0.1},
                now=datetime.now(UTC),
            )

    def published(self) -> list[str]:
        """Ids of the jobs that wait at the broker, newest first."""
        messages = [json.loads(raw) for raw in self.broker.lrange(QUEUE, 0, -1)]
        return [message["headers"]["argsrepr"] for message in messages]

    def uploads_in_flight(self) -> list[Path]:
        return list((self.settings.data_dir / "uploads").iterdir())


@contextmanager
def running(
    settings: Settings, *, app: FastAPI | None = None, root_path: str = ""
) -> Iterator[Service]:
    """The API (`app`, or a new one) on a free port; uvicorn is told `root_path`."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app or create_app(settings),
        log_level="warning",
        timeout_graceful_shutdown=1,
        lifespan="on",
        root_path=root_path,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    store = open_store(settings.database_url)
    broker = Redis.from_url(settings.broker_url.replace("redis+socket://", "unix://"))
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        with httpx.Client(base_url=url, timeout=30) as http, broker:
            yield Service(url, http, settings, store, SqlBlobStore(store), broker)
    finally:
        server.should_exit = True
        thread.join()
        store.close()


def settings_for(database_url: str, broker_url: str, data_dir: Path, **more: Any) -> Settings:
    return Settings(database_url=database_url, broker_url=broker_url, data_dir=data_dir, **more)


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem, checked for what all of them have."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["code"] == code
    assert body["status"] == status
    assert body["type"] == f"urn:td3:problem:{code}"
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


def bearer(key: str) -> dict[str, str]:
    """The header of an API key."""
    return {"Authorization": f"Bearer {key}"}
