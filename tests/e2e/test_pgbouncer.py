"""The service behind PgBouncer, in both of its pooling modes."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text

from app.errors import StorageUnavailableError
from app.store import jobs
from app.store.engine import open_store
from app.store.migrate import downgrade, upgrade
from tests.app.http.kit import problem, running, settings_for
from tests.pgbouncer import PgBouncer, pgbouncer
from tests.worker.kit import Script, Service

CLIENTS, CHANGES = 8, 25
LIMITS = {
    "statement_timeout": "1min",
    "lock_timeout": "30s",
    "idle_in_transaction_session_timeout": "1min",
}


@pytest.fixture(scope="module")
def bouncer(postgresql_database: str) -> Iterator[PgBouncer]:
    with pgbouncer(postgresql_database) as bouncer:
        yield bouncer


@pytest.fixture(params=["transaction", "session"])
def url(request: pytest.FixtureRequest, bouncer: PgBouncer, postgresql_url: str) -> str:
    """An empty database through PgBouncer, in each mode."""
    mode: str = request.param
    return bouncer.url(mode)


def test_limits_hold_in_every_transaction(url: str) -> None:
    store = open_store(url)
    for session_of in (store.read, store.write):
        for _ in range(3):
            with session_of() as session:
                found = {name: session.scalar(text(f"SHOW {name}")) for name in LIMITS}
            assert found == LIMITS
    store.close()


def test_a_limit_ends_what_takes_longer(url: str) -> None:
    """The server knows them, and does not only repeat them."""
    store = open_store(url)
    with (
        pytest.raises(StorageUnavailableError, match="statement timeout"),
        store.read() as session,
    ):
        session.execute(text("SET LOCAL statement_timeout = 1"))
        session.execute(text("SELECT pg_sleep(60)"))
    with store.read() as session:  # and the next transaction has its own again
        assert session.scalar(text("SHOW statement_timeout")) == "1min"
    store.close()


def test_nothing_that_is_read_writes(url: str) -> None:
    store = open_store(url)
    with pytest.raises(StorageUnavailableError, match="read-only"), store.read() as session:
        session.execute(text("DELETE FROM tenants"))
    store.close()


def test_many_clients_write_at_once(url: str, broker_url: str, tmp_path: Path) -> None:
    """More often than a driver waits before it prepares a statement, on shared connections."""
    service = Service(url, broker_url, tmp_path)
    job_ids = [service.make_job([], publish=False) for _ in range(CLIENTS)]

    def change(job_id: str) -> None:
        for _ in range(CHANGES):
            with service.store.write() as session:
                jobs.mark_published(session, job_id, datetime.now(UTC))
        assert service.job(job_id).published_at is not None

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(change, job_ids))
    service.close()


def test_the_service_works(url: str, broker_url: str, tmp_path: Path) -> None:
    upgrade(url)  # does nothing, but takes its lock
    script: Script = [["phase", "distilling"], ["result"]]
    workers = Service(url, broker_url, tmp_path)
    with running(settings_for(url, broker_url, tmp_path / "data")) as service:
        service.http.get("/readyz").raise_for_status()
        assert service.upload().status_code == 201
        job_id = workers.make_job(script)
        workers.start_worker()
        workers.wait_status(job_id, "succeeded")
        assert service.http.get(f"/jobs/{job_id}").json()["status"] == "succeeded"
    workers.close()


def test_tables_are_made_through_it(bouncer: PgBouncer, empty_postgresql_url: str) -> None:
    for mode in ("transaction", "session"):
        upgrade(bouncer.url(mode))
        downgrade(bouncer.url(mode), "base")


def test_what_it_says_is_passed_on(
    bouncer: PgBouncer, broker_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = "FATAL: no such database: nowhere"
    settings = settings_for(bouncer.url("nowhere"), broker_url, tmp_path)
    with running(settings) as service, caplog.at_level(logging.WARNING):
        answer = service.http.get("/readyz")
        assert answer.status_code == 503
        check = answer.json()["checks"]["database"]
        assert check == f"does not answer: OperationalError: connection failed: {words}"
        problem(service.http.get("/jobs"), 503, "database_unavailable")
    logged = [record.getMessage() for record in caplog.records if words in record.getMessage()]
    assert {record.split(":")[0] for record in logged} == {"the database does not answer"}
    assert any(str(bouncer.port) in record for record in logged)
    assert "swordfish" not in answer.text + caplog.text
