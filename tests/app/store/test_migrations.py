"""Migrations make the tables that the models describe, on both databases, and can be undone."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from app.store import datasets, job_reads
from app.store.engine import make_engine, open_store
from app.store.migrate import downgrade, upgrade
from app.store.models import DEFAULT_TENANT, Base


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'td3.sqlite3'}"
    url: str = request.getfixturevalue("empty_postgresql_url")
    return url


def tables(url: str) -> set[str]:
    engine = make_engine(url)
    names = set(inspect(engine).get_table_names())
    engine.dispose()
    return names


def test_up_and_down(empty_url: str) -> None:
    upgrade(empty_url)
    assert tables(empty_url) == {*Base.metadata.tables, "alembic_version"}
    upgrade(empty_url)
    downgrade(empty_url, "base")
    assert tables(empty_url) == {"alembic_version"}
    upgrade(empty_url)
    assert tables(empty_url) == {*Base.metadata.tables, "alembic_version"}


# As release 0001 wrote them.
_BEFORE_TENANTS = """
INSERT INTO blobs (sha256, bytes, complete, created_at) VALUES ('b1', 1, true, '2030-01-01');
INSERT INTO blob_chunks (sha256, position, data) VALUES ('b1', 0, 'x');
INSERT INTO datasets (id, name, created_at, fingerprint, source_sha256, source_bytes, statistics)
    VALUES ('ds_1', 'a log', '2030-01-01', 'b1', 'b1', 1, '{}');
INSERT INTO jobs (id, dataset_id, preset, config, status, attempt, max_attempts, created_at,
    updated_at, event_count) VALUES ('job_1', 'ds_1', 'fast', '{"seed": 0}', 'succeeded', 1, 3,
    '2030-01-01', '2030-01-01', 1);
INSERT INTO job_events (job_id, sequence, created_at, type, data)
    VALUES ('job_1', 1, '2030-01-01', 'status', '{}');
INSERT INTO artifacts (job_id, name, media_type, bytes, sha256)
    VALUES ('job_1', 'summary', 'text/plain', 1, 'b1')
"""


def contents(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table of release 0001, less what later releases added."""
    engine = make_engine(url)
    with engine.connect() as connection:
        found = {
            name: [tuple(row) for row in connection.execute(text(f"SELECT {columns} FROM {name}"))]
            for name, columns in (
                ("blobs", "sha256, bytes, complete"),
                ("blob_chunks", "sha256, position, data"),
                ("datasets", "id, name, fingerprint, source_bytes"),
                ("jobs", "id, dataset_id, status, attempt"),
                ("job_events", "job_id, sequence, type"),
                ("artifacts", "job_id, name, sha256"),
            )
        }
    engine.dispose()
    return found


def test_what_was_there_stays_and_belongs_to_the_default_tenant(empty_url: str) -> None:
    upgrade(empty_url, "0001")
    store = open_store(empty_url)
    with store.write() as session:
        for statement in _BEFORE_TENANTS.split(";"):
            session.execute(text(statement.replace(":", r"\:")))
    before = contents(empty_url)
    assert all(len(rows) == 1 for rows in before.values())

    upgrade(empty_url)
    assert contents(empty_url) == before
    with store.write() as session:
        row = job_reads.get(session, "job_1", tenant_id=DEFAULT_TENANT)
        assert row is not None
        assert datasets.get(session, row.dataset_id, tenant_id=row.tenant_id) is not None
    with pytest.raises(IntegrityError), store.write() as session:
        session.execute(text("UPDATE jobs SET dataset_id = 'ds_2'"))
    with pytest.raises(IntegrityError), store.write() as session:
        session.execute(text("UPDATE jobs SET status = 'odd'"))

    downgrade(empty_url, "0001")
    assert contents(empty_url) == before
    upgrade(empty_url)
    assert contents(empty_url) == before
    store.close()


def test_several_processes_may_upgrade_at_once(empty_url: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(upgrade, [empty_url] * 3))
    assert set(Base.metadata.tables) <= tables(empty_url)


def test_models_and_migrations_agree(database_url: str) -> None:
    store = open_store(database_url)
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    store.close()


def test_checks_reached_the_database(database_url: str) -> None:
    store = open_store(database_url)
    found = {check["name"] for check in inspect(store.engine).get_check_constraints("jobs")}
    assert found == {"ck_jobs_status", "ck_jobs_lease"}
    store.close()
