"""A worker takes no job before it can do something about it."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlalchemy.orm import Session

from app.errors import StorageUnavailableError
from app.settings import Settings
from app.store.engine import Store
from app.store.migrate import downgrade, upgrade
from tests.worker.kit import ROOT, Script, Service, wait_for
from worker.attempt import run_job
from worker.metrics import WorkerMetrics
from worker.start import EXIT_STORES

ENGINE = [sys.executable, "-S", str(ROOT / "tests/worker/fake_engine.py")]
SUCCESS: Script = [["result"]]


def test_no_id_is_taken_where_the_stores_cannot_be_used(
    service: Service, postgresql_url: str, tmp_path: Path
) -> None:
    job_id = service.make_job(SUCCESS)
    missing = make_url(postgresql_url).set(database="td3_test_nowhere")
    older = tmp_path / "older.sqlite3"
    upgrade(f"sqlite:///{older}")
    downgrade(f"sqlite:///{older}", "0003")
    expected = {
        f"sqlite:///{tmp_path}/empty.sqlite3": "migrations: there are no tables yet",
        f"sqlite:///{older}": "migrations: the tables are at 0003, this release needs",
        missing.render_as_string(hide_password=False): 'database "td3_test_nowhere" does not exist',
        "postgresql://td3:swordfish@127.0.0.1:1/td3": "Connection refused",
    }
    workers = [service.start_worker(DATABASE_URL=url, START_SECONDS="0") for url in expected]
    assert [worker.wait(timeout=60) for worker in workers] == [EXIT_STORES] * len(workers)
    for number, (url, words) in enumerate(expected.items()):
        said = (service.folder / f"worker-{number}.log").read_text()
        assert "no job is taken, this worker ends" in said
        assert words in said.replace('\\"', '"')
        assert make_url(url).render_as_string(hide_password=True).partition(":")[2] in said
        assert "swordfish" not in said
    assert service.queue.depth() == 1
    service.start_worker()
    service.wait_status(job_id, "succeeded")


def test_a_migration_is_waited_for(broker_url: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/td3.sqlite3"
    service = Service(url, broker_url, tmp_path)
    service.start_worker()
    wait_for(lambda: "no job is taken yet: migrations" in service.logs(), service.logs)
    upgrade(url)
    job_id = service.make_job(SUCCESS)
    service.wait_status(job_id, "succeeded")
    service.close()


class Outage(Store):
    """A store that does not answer for a number of times."""

    def __init__(self, store: Store, times: int) -> None:
        super().__init__(store.engine)
        self.times = times

    @contextmanager
    def write(self) -> Iterator[Session]:
        if self.times:
            self.times -= 1
            raise StorageUnavailableError("no answer")
        with super().write() as session:
            yield session


class Stopping(threading.Event):
    """Set after some waits, none of which takes any time."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.left = waits

    def wait(self, timeout: float | None = None) -> bool:  # noqa: ARG002
        self.left -= 1
        if self.left == 0:
            self.set()
        return self.is_set()


def _run(service: Service, job_id: str, *, outages: int, stopping: threading.Event) -> None:
    run_job(
        job_id,
        store=Outage(service.store, outages),
        blobs=service.blobs,
        queue=service.queue,
        settings=Settings(data_dir=service.folder / "data", engine_command=ENGINE),
        stopping=stopping,
        metrics=WorkerMetrics(),
    )


def test_an_id_is_kept_while_the_database_does_not_answer(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = service.make_job(SUCCESS, publish=False)
    _run(service, job_id, outages=3, stopping=Stopping(waits=99))
    assert service.job(job_id).status == "succeeded"
    said = [record for record in caplog.records if "not claimed yet" in record.getMessage()]
    assert len(said) == 3


def test_an_id_goes_back_when_the_worker_stops_in_an_outage(service: Service) -> None:
    job_id = service.make_job(SUCCESS, publish=False)
    _run(service, job_id, outages=99, stopping=Stopping(waits=3))
    assert service.job(job_id).status == "queued"
    assert service.queue.depth() == 1
