"""Datasets and jobs for tests of the store."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from app.blobs.sql import SqlBlobStore
from app.store import datasets, job_reads, jobs
from app.store.engine import Store
from app.store.models import DEFAULT_TENANT, Job

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ERROR = {"code": "engine_crashed", "message": "It crashed.\x00"}


def make_dataset(
    store: Store, folder: Path, content: bytes, *, tenant_id: str = DEFAULT_TENANT
) -> str:
    """Store `content` as a dataset; returns its id."""
    path = folder / "log.parquet"
    path.write_bytes(content)
    sha256, size = SqlBlobStore(store).put_file(path)
    with store.write() as session:
        return datasets.create(
            session,
            tenant_id=tenant_id,
            name="A log",
            fingerprint=sha256,
            source_sha256=sha256,
            source_bytes=size,
            statistics={"users": 3},
        ).id


def make_job(store: Store, dataset_id: str, *, max_attempts: int = 3) -> str:
    """A queued job; returns its id."""
    with store.write() as session:
        return jobs.create(
            session,
            tenant_id=DEFAULT_TENANT,
            dataset_id=dataset_id,
            config={"seed": 0},
            preset="fast",
            name="A job",
            max_attempts=max_attempts,
        ).id


def claim(store: Store, job_id: str, now: datetime = NOW) -> jobs.Lease:
    """Claim a job that can be claimed, for a minute."""
    with store.write() as session:
        lease = jobs.claim(session, job_id, owner="me", lease=MINUTE, now=now)
    assert lease is not None
    return lease


def job(store: Store, job_id: str) -> Job:
    """The job as it is now."""
    with store.read() as session:
        found = job_reads.get(session, job_id, tenant_id=DEFAULT_TENANT)
    assert found is not None
    return found


def history(store: Store, job_id: str) -> list[str]:
    """Types of its events, and of status events the status; checks that no number is missing."""
    with store.read() as session:
        events = job_reads.events(session, job_id, tenant_id=DEFAULT_TENANT, after=0, limit=1000)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return [event.data["status"] if event.type == "status" else event.type for event in events]


def finished_job(store: Store, dataset_id: str, *, days_ago: float) -> str:
    """A succeeded job with an artifact and two progress events; returns its id."""
    job_id = make_job(store, dataset_id)
    lease = claim(store, job_id)
    ended = datetime.now(UTC) - timedelta(days=days_ago)
    with store.write() as session:
        log = datasets.get(session, dataset_id, tenant_id=DEFAULT_TENANT)
        assert log is not None
        assert log.fingerprint is not None
        for step in (1, 2):
            jobs.record(session, lease, "progress", {"phase": "distilling", "step": step}, ended)
        artifact = jobs.StoredArtifact("manifest.json", "application/json", 1, log.fingerprint)
        assert jobs.succeed(session, lease, artifacts=[artifact], metrics={}, now=ended)
    return job_id
