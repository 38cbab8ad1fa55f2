"""Jobs as they go over the wire, and what polling costs."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from app.http.coalescing import Together
from app.http.schemas.jobs import Artifact, Job, WebhookTarget
from app.store import job_reads
from app.store import models as rows
from app.store.engine import Store
from app.store.models import TERMINAL

_MADE_FOR_THE_WIRE = frozenset({"artifacts", "metadata", "seed", "webhook"})
_MOST_KEPT = 1000


def job_view(row: rows.Job) -> Job:
    """A job as it goes over the wire."""
    return Job(
        **{name: getattr(row, name) for name in Job.model_fields if name not in _MADE_FOR_THE_WIRE},
        metadata=row.labels,
        seed=row.config.get("seed"),
        webhook=WebhookTarget(url=row.webhook["url"]) if row.webhook else None,  # not its secret
        artifacts=[
            Artifact(
                name=artifact.name,
                media_type=artifact.media_type,
                bytes=artifact.bytes,
                sha256=artifact.sha256,
                href=f"/jobs/{row.id}/artifacts/{artifact.name}",
            )
            # Read after the job, which may have succeeded in between.
            for artifact in (row.artifacts if row.status == "succeeded" else ())
        ],
    )


@dataclass(frozen=True)
class Sight:
    """A job at a moment: the answer to a poll."""

    version: tuple[int, datetime]
    over: bool
    content: bytes
    etag: str


class JobSights:
    """Jobs as they are now, for those who poll.

    Each poll asks the database for the job's version. Only where that is another one than this
    process has seen, the job is read and written out anew.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: OrderedDict[str, Sight] = OrderedDict()  # the one seen last is at the end
        self._sights: Together[tuple[str, str], Sight | None] = Together(self._look)

    async def of(self, tenant_id: str, job_id: str) -> Sight | None:
        """This tenant's job, or None."""
        return await self._sights.ask((tenant_id, job_id))

    def _look(self, asked: Sequence[tuple[str, str]]) -> list[Sight | None]:
        with self._store.read() as session:
            found = {
                (row.tenant_id, row.id): (row.event_count, row.updated_at)
                for row in job_reads.versions(session, {job_id for _, job_id in asked})
            }
            changed = [
                job_id
                for tenant_id, job_id in set(asked) & found.keys()  # each tenant sees its own
                if job_id not in self._seen
                or self._seen[job_id].version != found[tenant_id, job_id]
            ]
            for job_id in changed:
                self._seen.pop(job_id, None)
            for job in job_reads.get_all(session, changed) if changed else ():
                self._seen[job.id] = _sight(job)
        sights = []
        for tenant_id, job_id in asked:
            known = (tenant_id, job_id) in found
            sight = self._seen.get(job_id) if known else None  # none: deleted a moment ago
            if sight is not None:
                self._seen.move_to_end(job_id)
            sights.append(sight)
        while len(self._seen) > _MOST_KEPT:
            self._seen.popitem(last=False)
        return sights


def _sight(row: rows.Job) -> Sight:
    content = job_view(row).model_dump_json().encode()
    return Sight(
        version=(row.event_count, row.updated_at),
        over=row.status in TERMINAL,
        content=content,
        etag=f'"{hashlib.sha256(content).hexdigest()}"',
    )
