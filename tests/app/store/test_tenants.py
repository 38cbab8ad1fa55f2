"""Nobody sees or changes what another tenant owns, whatever is asked for."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from app.store import datasets, job_reads, jobs, tenants
from app.store.engine import Store
from app.store.models import DEFAULT_TENANT
from tests.app.store.kit import NOW, claim, history, job, make_dataset, make_job


@pytest.fixture
def other(store: Store) -> str:
    """A tenant that owns nothing."""
    with store.write() as session:
        tenants.ensure(session, "other")
    return "other"


def test_a_tenant_is_made_once(store: Store, other: str) -> None:
    with store.write() as session:
        tenants.ensure(session, other)
        tenants.ensure(session, DEFAULT_TENANT)


def test_what_another_tenant_owns_is_not_there(store: Store, dataset_id: str, other: str) -> None:
    job_id = make_job(store, dataset_id)
    with store.write() as session:
        assert datasets.get(session, dataset_id, tenant_id=other) is None
        assert datasets.page(session, tenant_id=other, limit=9) == ([], False)
        assert job_reads.get(session, job_id, tenant_id=other) is None
        assert job_reads.page(session, tenant_id=other, limit=9) == ([], False)
        assert job_reads.page(session, tenant_id=other, limit=9, dataset_id=dataset_id) == (
            [],
            False,
        )
        assert job_reads.events(session, job_id, tenant_id=other) == []
        assert jobs.request_cancel(session, job_id, NOW, tenant_id=other) == "missing"
    assert job(store, job_id).status == "queued"
    assert history(store, job_id) == ["queued"]


def test_a_job_needs_data_of_its_own_tenant(store: Store, dataset_id: str, other: str) -> None:
    with pytest.raises(IntegrityError), store.write() as session:
        jobs.create(
            session,
            tenant_id=other,
            dataset_id=dataset_id,
            config={},
            preset="fast",
            name=None,
            max_attempts=1,
        )


def test_the_same_bytes_are_a_dataset_of_each(
    store: Store, dataset_id: str, other: str, tmp_path: Path
) -> None:
    theirs = make_dataset(store, tmp_path, b"a log", tenant_id=other)
    with store.read() as session:
        [found], _ = datasets.page(session, tenant_id=other, limit=9)
        [ours], _ = datasets.page(session, tenant_id=DEFAULT_TENANT, limit=9)
    assert (found.id, ours.id) == (theirs, dataset_id)
    assert found.fingerprint == ours.fingerprint


def test_a_worker_sees_the_job_that_it_holds(store: Store, dataset_id: str) -> None:
    lease = claim(store, make_job(store, dataset_id))
    with store.write() as session:
        found = jobs.held(session, lease)
        assert found is not None
        assert found.tenant_id == DEFAULT_TENANT
        jobs.give_up_attempt(
            session,
            lease,
            error={"code": "x", "message": "x"},
            permanent=True,
            now=datetime.now(UTC),
        )
        assert jobs.held(session, lease) is None
