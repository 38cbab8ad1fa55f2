"""How the API holds up: many pollers and uploaders, long lists, long queues.

    python -m benchmarks.load --json load.json
    python -m benchmarks.load --database-url postgresql://td3@127.0.0.1/EMPTY_DATABASE

Polling `GET /jobs/{id}` (each client its own job, without an API key and with one) is compared with
an empty FastAPI route that the same server program serves in another process, turn by turn. Both
are asked by a lean client (raw asyncio streams): httpx takes several times what an empty route
takes, and would measure itself. Beside requests a second it tells the server's CPU time for one
request, which other programs on the machine do not change much.

The mixed load (`--pollers` polling and `--uploaders` uploading while a job runs) uses httpx, as
clients do. Lists and claims are timed on a database of many jobs.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import insert, text

from app.api_keys import issue
from app.blobs.sql import SqlBlobStore
from app.settings import Settings
from app.store import datasets, jobs
from app.store.engine import Store, database_now, open_store
from app.store.ids import new_id
from app.store.models import DEFAULT_TENANT, TERMINAL, Job, JobEvent
from benchmarks.polling import ROOT, Turns, compare, program, quantiles, server
from td3engine.config.presets import build_config

LOG = "user_id,item_id,timestamp\n" + "".join(f"u{i % 97},i{i % 61},{i}\n" for i in range(3000))
# Stands in for the engine: says how far it is, uses no CPU, ends when the benchmark does.
ENGINE = """
import json, time
print(json.dumps({"event": "phase", "phase": "distilling"}), flush=True)
for step in range(10**6):
    print(json.dumps({"event": "progress", "phase": "distilling", "step": step, "total": 10**6}),
          flush=True)
    time.sleep(0.2)
"""

# --- polling and uploading at once ----------------------------------------------------------------


async def mix(url: str, path: str, options: argparse.Namespace) -> dict[str, Any]:
    """Pollers that look every second, as clients should, and uploaders that never pause."""
    latencies: dict[str, list[float]] = {"poll": [], "upload": []}
    statuses: dict[str, int] = {}
    end = time.monotonic() + options.seconds * 4

    async def one(kind: str, request: Callable[[], Any]) -> None:
        begin = time.perf_counter()
        answer = await request()
        latencies[kind].append(time.perf_counter() - begin)
        key = f"{kind} {answer.status_code}"
        statuses[key] = statuses.get(key, 0) + 1

    async def poller(number: int) -> None:
        await asyncio.sleep(number / options.pollers)
        while time.monotonic() < end:
            await one("poll", lambda: http.get(path))
            await asyncio.sleep(1)

    async def uploader(number: int) -> None:
        count = 0
        while time.monotonic() < end:
            file = {"file": f"{LOG}u{number},i{count},{count}\n".encode()}
            count += 1
            await one("upload", partial(http.post, "/datasets", files=file))

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=300, trust_env=False) as http:
        await asyncio.gather(
            *(poller(number) for number in range(options.pollers)),
            *(uploader(number) for number in range(options.uploaders)),
        )
    return {
        "answers": statuses,
        **{kind: {"count": len(times), **quantiles(times)} for kind, times in latencies.items()},
    }


# --- many jobs ------------------------------------------------------------------------------------


def fill(store: Store, dataset_id: str, count: int, status: str | None) -> None:
    """Many jobs, of every terminal state in turn where none is given."""
    config = build_config("fast", {}).model_dump(mode="json")
    with store.write() as session:
        now = database_now(session)
        made, events = [], []
        for number in range(count):
            state = status or TERMINAL[number % len(TERMINAL)]
            job_id = new_id("job")
            made.append(
                {
                    "id": job_id,
                    "tenant_id": DEFAULT_TENANT,
                    "dataset_id": dataset_id,
                    "preset": "fast",
                    "config": config,
                    "status": state,
                    "attempt": 0,
                    "max_attempts": 3,
                    "created_at": now,
                    "updated_at": now,
                    "finished_at": None if state == "queued" else now,
                    "published_at": now,
                    "event_count": 1,
                }
            )
            data = {"status": state, "attempt": 0}
            events.append(
                {"job_id": job_id, "sequence": 1, "created_at": now, "type": "status", "data": data}
            )
        session.execute(insert(Job), made)
        session.execute(insert(JobEvent), events)
    if store.engine.dialect.name == "postgresql":  # as autovacuum does within a minute or so
        with store.write() as session:
            session.execute(text("ANALYZE"))


def list_times(url: str, repeats: int) -> dict[str, float]:
    """Milliseconds of a page of 100: the first one, and one in the middle of all."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:

        def page(**query: str) -> tuple[float, list[dict[str, Any]]]:
            times = []
            for _ in range(repeats):
                begin = time.perf_counter()
                answer = http.get("/jobs", params={"limit": "100", **query})
                times.append(time.perf_counter() - begin)
            answer.raise_for_status()
            data: list[dict[str, Any]] = answer.json()["data"]
            return statistics.median(times) * 1e3, data

        first, data = page()
        middle = data[-1]["id"]
        with contextlib.suppress(IndexError):
            for _ in range(400):  # pages: 40 thousand jobs, if there are so many
                answer = http.get("/jobs", params={"limit": "100", "after": middle}).json()
                middle = answer["data"][-1]["id"]
        dataset = data[0]["dataset_id"]
        return {
            "first": first,
            "middle": page(after=middle)[0],
            "status": page(status="failed")[0],
            "status_middle": page(status="failed", after=middle)[0],
            "dataset": page(dataset_id=dataset)[0],
            "dataset_middle": page(dataset_id=dataset, after=middle)[0],
        }


def claim_time(store: Store, dataset_id: str, repeats: int) -> float:
    """Milliseconds of a claim, in a transaction of its own."""
    times = []
    for _ in range(repeats):
        job_id = new_job(store, dataset_id)
        begin = time.perf_counter()
        with store.write() as session:
            lease = jobs.claim(
                session,
                job_id,
                owner="load",
                lease=timedelta(minutes=1),
                now=database_now(session),
            )
        times.append(time.perf_counter() - begin)
        assert lease is not None
        with store.write() as session:
            error = {"code": "load", "message": ""}
            now = database_now(session)
            jobs.give_up_attempt(session, lease, error=error, permanent=True, now=now)
    return statistics.median(times) * 1e3


def new_job(store: Store, dataset_id: str) -> str:
    """A queued job that nobody was told of."""
    with store.write() as session:
        return jobs.create(
            session,
            tenant_id=DEFAULT_TENANT,
            dataset_id=dataset_id,
            config=build_config("fast", {}).model_dump(mode="json"),
            preset="fast",
            name=None,
            max_attempts=3,
        ).id


def new_key(store: Store, settings: Settings) -> str:
    """An API key, and the end of being served without one."""
    with store.write() as session:
        _, key = issue(
            session,
            settings,
            tenant_id=DEFAULT_TENANT,
            name="load",
            scope="read",
            expires_at=None,
        )
    return key


def new_dataset(store: Store, folder: Path) -> str:
    """A dataset of a few bytes."""
    path = folder / "log"
    path.write_bytes(b"a log")
    sha256, size = SqlBlobStore(store).put_file(path)
    with store.write() as session:
        return datasets.create(
            session,
            tenant_id=DEFAULT_TENANT,
            name="load",
            fingerprint=sha256,
            source_sha256=sha256,
            source_bytes=size,
            statistics={"users": 1, "items": 1, "interactions": 1, "time_min": 0, "time_max": 0},
        ).id


# --- the whole ------------------------------------------------------------------------------------


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every part, on one database."""
    database_url = options.database_url or f"sqlite:///{folder}/td3.sqlite3"
    environment = {
        "TD3_DATA_DIR": str(folder),
        "TD3_DATABASE_URL": database_url,
        "TD3_BROKER_URL": options.broker_url,
        "TD3_QUOTAS": json.dumps({"requests_per_minute": 10**9}),
        "TD3_ENGINE_COMMAND": json.dumps([sys.executable, "-c", ENGINE]),
    }
    subprocess.run(
        [sys.executable, "-m", "app.store.migrate"],
        cwd=ROOT,
        env={**os.environ, **environment},
        stderr=subprocess.DEVNULL,
        check=True,
    )
    store = open_store(database_url)
    dataset_id = new_dataset(store, folder)
    found: dict[str, Any] = {
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg()[0],
        "database": store.engine.dialect.name,
    }
    windows = Turns(options.rounds, options.pollers, options.seconds)
    worker = ("celery", "-A", "worker.celery_app", "worker", "-P", "threads", "-c", "1")
    with server("app.main:app", **environment) as api:
        found["claim_ms"] = {"empty queue": claim_time(store, dataset_id, options.repeats)}
        found["list_ms"] = {"few jobs": list_times(api[0], options.repeats)}
        with program(*worker, **environment):
            body = {"dataset_id": dataset_id, "preset": "fast"}
            job = httpx.post(f"{api[0]}/jobs", json=body, timeout=60, trust_env=False).json()
            path = f"/jobs/{job['id']}"
            paths = [
                path,
                *(f"/jobs/{new_job(store, dataset_id)}" for _ in range(options.pollers - 1)),
            ]
            found["polling"] = compare(api, paths, windows)
            found["mixed"] = asyncio.run(mix(api[0], path, options))
            httpx.post(f"{api[0]}{path}/cancel", timeout=60, trust_env=False)
        fill(store, dataset_id, options.queued, "queued")
        key = f"{options.queued} queued"
        found["claim_ms"][key] = claim_time(store, dataset_id, options.repeats)
        fill(store, dataset_id, options.jobs, None)
        found["list_ms"][f"{options.jobs} jobs"] = list_times(api[0], options.repeats)
        found["metrics_ms"] = scrape_time(api[0], options.repeats)
        # The last part: from the first key on, nobody is served without one.
        settings = Settings(data_dir=folder)
        found["polling_with_key"] = compare(api, paths, windows, new_key(store, settings))
    store.close()
    return found


def scrape_time(url: str, repeats: int) -> float:
    """Milliseconds of GET /metrics."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        httpx.get(f"{url}/metrics", timeout=60, trust_env=False).raise_for_status()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> None:
    """Measure, print, and write the file if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database-url", help="an empty database (default: SQLite, temporary)")
    parser.add_argument("--broker-url", default="redis://127.0.0.1:6379/9", help="an empty one")
    parser.add_argument("--pollers", type=int, default=200)
    parser.add_argument("--uploaders", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=5, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=100_000, help="in the list")
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=30, help="of lists and claims")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="td3-load-") as name:
        found = run(options, Path(name))
    text = json.dumps(found, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
