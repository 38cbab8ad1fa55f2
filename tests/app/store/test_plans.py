"""What the database does for a page, a claim and a scrape: by index, with thousands of jobs."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.orm import Session

from app.store import job_reads, jobs, tenants
from app.store.engine import Store
from app.store.ids import new_id
from app.store.models import DEFAULT_TENANT, Job, JobStatus
from app.store.statistics import read_statistics
from tests.app.store.kit import make_dataset, make_job

MANY = 6000
STATUSES: tuple[JobStatus, ...] = ("queued", "succeeded", "failed")


@pytest.fixture
def crowded(store: Store, tmp_path: Path) -> Iterator[tuple[Store, str]]:
    """Thousands of jobs on two datasets, and the id of one of these."""
    both = [make_dataset(store, tmp_path, content) for content in (b"1", b"2")]
    now = datetime.now(UTC)
    rows = [
        {
            "id": new_id("job"),
            "tenant_id": DEFAULT_TENANT,
            "dataset_id": both[number % 2],
            "preset": "fast",
            "config": {},
            "status": STATUSES[number % 3],
            "attempt": 0,
            "max_attempts": 3,
            "created_at": now,
            "updated_at": now,
            "event_count": 0,
        }
        for number in range(MANY)
    ]
    with store.write() as session:
        session.execute(insert(Job), rows)
    with store.write() as session:
        session.execute(text("ANALYZE"))
    yield store, both[0]


def plans(store: Store, act: Callable[[Session], object]) -> str:
    """How the database does what `act` asks of the table of jobs."""
    asked: list[tuple[str, Any]] = []

    def note(_c: Any, _x: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("UPDATE jobs") or " \nFROM jobs" in statement:
            asked.append((statement, parameters))

    event.listen(store.engine, "before_cursor_execute", note)
    with store.write() as session:
        act(session)
    event.remove(store.engine, "before_cursor_execute", note)
    explain = "EXPLAIN QUERY PLAN" if store.engine.dialect.name == "sqlite" else "EXPLAIN"
    with store.engine.connect() as connection:
        lines = [
            str(row[-1])
            for statement, parameters in asked
            for row in connection.exec_driver_sql(f"{explain} {statement}", parameters)
        ]
    assert lines
    return "\n".join(lines)


def reads_all(plan: str) -> bool:
    """Whether it reads the table of jobs from one end to the other."""
    return "Seq Scan on jobs" in plan or any(
        line.startswith("SCAN jobs") and "INDEX" not in line for line in plan.splitlines()
    )


def sorts(plan: str) -> bool:
    return "Sort" in plan or "TEMP B-TREE" in plan


@pytest.mark.parametrize("middle", [False, True], ids=["first page", "middle"])
@pytest.mark.parametrize("dataset", [False, True], ids=["any dataset", "one dataset"])
@pytest.mark.parametrize("status", [None, "failed"])
def test_a_page_is_read_from_an_index_in_its_order(
    crowded: tuple[Store, str], status: JobStatus | None, dataset: bool, middle: bool
) -> None:
    store, dataset_id = crowded
    with store.read() as session:
        ids = [job.id for job in job_reads.page(session, tenant_id=DEFAULT_TENANT, limit=100)[0]]
    plan = plans(
        store,
        lambda session: job_reads.page(
            session,
            tenant_id=DEFAULT_TENANT,
            limit=100,
            after=ids[-1] if middle else None,
            status=status,
            dataset_id=dataset_id if dataset else None,
        ),
    )
    assert not reads_all(plan), plan
    assert not sorts(plan), plan


def test_a_claim_looks_at_one_job_whatever_the_queue(crowded: tuple[Store, str]) -> None:
    store, dataset_id = crowded
    job_id = make_job(store, dataset_id)
    now = datetime.now(UTC)
    plan = plans(
        store,
        lambda session: jobs.claim(
            session, job_id, owner="me", lease=timedelta(minutes=1), now=now
        ),
    )
    assert not reads_all(plan), plan
    assert f"id)::text = '{job_id}'" in plan or "id=?" in plan, plan


def test_a_poll_looks_at_one_job(crowded: tuple[Store, str]) -> None:
    store, dataset_id = crowded
    job_id = make_job(store, dataset_id)
    plan = plans(store, lambda session: job_reads.versions(session, [job_id]))
    assert not reads_all(plan), plan


def test_whether_there_is_room_for_a_job_is_read_from_an_index(
    crowded: tuple[Store, str],
) -> None:
    store, _ = crowded
    for limit, fewer in ((0, False), (1, False), (MANY, False), (MANY + 1, True)):
        with store.read() as session:
            assert tenants.has_fewer_jobs(session, DEFAULT_TENANT, limit) is fewer
            assert tenants.has_fewer_jobs(session, "other", limit) is (limit > 0)
    if store.engine.dialect.name == "postgresql":
        pytest.skip("of a small table PostgreSQL rather reads all than an index")
    plan = plans(store, lambda session: tenants.has_fewer_jobs(session, DEFAULT_TENANT, MANY))
    assert "USING COVERING INDEX" in plan, plan


def test_a_scrape_reads_no_table(crowded: tuple[Store, str]) -> None:
    store, _ = crowded
    if store.engine.dialect.name == "postgresql":
        pytest.skip("of a small table PostgreSQL rather reads all than an index")
    plan = plans(store, lambda session: read_statistics(session, datetime.now(UTC)))
    assert not reads_all(plan), plan
