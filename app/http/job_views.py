"""Jobs as clients see them, and cached answers for polls."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from app.http.coalescing import BatchedLookup
from app.http.schemas.jobs import Artifact, Job, WebhookTarget
from app.store import job_reads
from app.store import models as rows
from app.store.engine import Store
from app.store.models import TERMINAL

# Fields of `Job` that are no columns of the same name.
_DERIVED_FIELDS = frozenset({"artifacts", "metadata", "seed", "webhook"})
_CACHE_SIZE = 1000


def job_view(row: rows.Job) -> Job:
    """A job's row as clients see it."""
    return Job(
        **{name: getattr(row, name) for name in Job.model_fields if name not in _DERIVED_FIELDS},
        metadata=row.labels,
        seed=row.config.get("seed"),
        webhook=WebhookTarget(url=row.webhook["url"]) if row.webhook else None,  # no secret
        artifacts=[
            Artifact(
                name=artifact.name,
                media_type=artifact.media_type,
                bytes=artifact.bytes,
                sha256=artifact.sha256,
                href=f"/jobs/{row.id}/artifacts/{artifact.name}",
            )
            # Artifacts are read after the job's row, so the job may have succeeded in between.
            for artifact in (row.artifacts if row.status == "succeeded" else ())
        ],
    )


@dataclass(frozen=True)
class JobSnapshot:
    """A job at one moment, serialised as the answer to a poll."""

    version: tuple[int, datetime]
    over: bool
    content: bytes
    etag: str


class JobSnapshots:
    """Current snapshots of jobs, for clients that poll.

    Each poll reads the job's version from the database. The job itself is read and serialised only
    if this process has not cached that version.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cache: OrderedDict[str, JobSnapshot] = OrderedDict()  # least recently used first
        self._lookup: BatchedLookup[tuple[str, str], JobSnapshot | None] = BatchedLookup(
            self._fetch
        )

    async def of(self, tenant_id: str, job_id: str) -> JobSnapshot | None:
        """The snapshot of this tenant's job, or None if there is no such job.

        Raises:
            StorageUnavailableError: the database does not answer.
        """
        return await self._lookup.get((tenant_id, job_id))

    def _fetch(self, keys: Sequence[tuple[str, str]]) -> list[JobSnapshot | None]:
        with self._store.read() as session:
            versions = {
                (row.tenant_id, row.id): (row.event_count, row.updated_at)
                for row in job_reads.versions(session, {job_id for _, job_id in keys})
            }
            changed = [
                job_id
                for tenant_id, job_id in set(keys) & versions.keys()  # tenants see their own jobs
                if job_id not in self._cache
                or self._cache[job_id].version != versions[tenant_id, job_id]
            ]
            for job_id in changed:
                self._cache.pop(job_id, None)
            for job in job_reads.get_all(session, changed) if changed else ():
                self._cache[job.id] = _snapshot(job)
        snapshots = []
        for key in keys:
            # A job that was deleted between the two reads has a version and no snapshot.
            snapshot = self._cache.get(key[1]) if key in versions else None
            if snapshot is not None:
                self._cache.move_to_end(key[1])
            snapshots.append(snapshot)
        while len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)
        return snapshots


def _snapshot(row: rows.Job) -> JobSnapshot:
    content = job_view(row).model_dump_json().encode()
    return JobSnapshot(
        version=(row.event_count, row.updated_at),
        over=row.status in TERMINAL,
        content=content,
        etag=f'"{hashlib.sha256(content).hexdigest()}"',
    )
