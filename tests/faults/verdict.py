"""What has to be true when the dust has settled, and the table that says whether it is."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from sqlalchemy import exists, select

from app.store import job_reads
from app.store.engine import Store
from app.store.models import TERMINAL, Artifact, Blob, Dataset, Job

NEXT = {
    None: {"queued"},
    "queued": {"running", "cancelled"},
    "running": {"queued", "cancelling", "succeeded", "failed"},
    "cancelling": {"cancelled"},
}
Expected = Callable[[Job, str], dict[str, bytes]]  # a job and its log's fingerprint: its artifacts


@dataclass
class Row:
    """What one kind of fault did."""

    injected: int = 0
    jobs: set[str] = field(default_factory=set)  # not over when it struck
    orphans: int = 0  # processes


@dataclass
class Verdict:
    """Complaints by job, and about the rest."""

    lost: dict[str, str] = field(default_factory=dict)
    doubled: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    states: dict[str, int] = field(default_factory=dict)
    resumed: int = 0  # successes of more than one attempt
    checked_bytes: int = 0

    def complaints(self) -> list[str]:
        """All of them; none is a pass."""
        return [
            *(f"{job_id} lost: {why}" for job_id, why in self.lost.items()),
            *(f"{job_id} doubled: {why}" for job_id, why in self.doubled.items()),
            *self.wrong,
        ]


def judge(
    store: Store, accepted: Sequence[str], journal: Path, url: str, expected: Expected
) -> Verdict:
    """Look at every job, and download what they made."""
    verdict = Verdict()
    with store.read() as session:
        found = {job.id: job for job in session.scalars(select(Job))}
        datasets = session.execute(select(Dataset.id, Dataset.fingerprint))
        fingerprints = {dataset.id: dataset.fingerprint for dataset in datasets}
    for job_id in accepted:
        if job_id not in found:
            verdict.lost[job_id] = "accepted, and not there"
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        for job in found.values():
            verdict.states[job.status] = verdict.states.get(job.status, 0) + 1
            _judge_history(store, job, journal, verdict)
            if job.status == "succeeded":
                verdict.resumed += job.attempt > 1
                _judge_artifacts(http, job, expected(job, fingerprints[job.dataset_id]), verdict)
            elif job.artifacts:
                verdict.wrong.append(f"{job.id}: {job.status}, with artifacts")
    _judge_blobs(store, verdict)
    return verdict


def _judge_history(store: Store, job: Job, journal: Path, verdict: Verdict) -> None:
    with store.read() as session:
        events = job_reads.events(session, job.id, tenant_id=job.tenant_id, limit=1_000_000)
    if [event.sequence for event in events] != list(range(1, len(events) + 1)):
        verdict.wrong.append(f"{job.id}: its events have gaps")
    before: str | None = None
    starts = released = 0
    for event in (event for event in events if event.type == "status"):
        status = event.data["status"]
        if status not in NEXT.get(before, set()):
            verdict.doubled[job.id] = f"from {before} to {status}"
        starts += status == "running"
        released += status == "queued" and before is not None and "error" not in event.data
        before = status
    ends = [e for e in events if e.type == "status" and e.data["status"] in TERMINAL]
    if job.status not in TERMINAL or not ends:
        verdict.lost[job.id] = f"still {job.status}"
    elif len(ends) > 1 or events[-1] is not ends[0] or ends[0].data["status"] != job.status:
        verdict.doubled[job.id] = f"ends {[end.data['status'] for end in ends]}"
    if starts - released > job.max_attempts or job.attempt > job.max_attempts:
        verdict.doubled[job.id] = f"{starts} starts, {released} of them given back"
    if job.status == "failed" and (job.error is None or job.attempt != job.max_attempts):
        verdict.wrong.append(f"{job.id}: failed after {job.attempt} attempts with {job.error}")
    path = journal / job.id
    engines = len(path.read_text().splitlines()) if path.exists() else 0
    if engines > starts:
        verdict.doubled[job.id] = f"{engines} engines in {starts} starts"


def _judge_artifacts(
    http: httpx.Client, job: Job, expected: dict[str, bytes], verdict: Verdict
) -> None:
    if {artifact.name for artifact in job.artifacts} != set(expected):
        verdict.wrong.append(f"{job.id}: artifacts are {[a.name for a in job.artifacts]}")
        return
    for artifact in job.artifacts:
        content = http.get(f"/jobs/{job.id}/artifacts/{artifact.name}").content
        verdict.checked_bytes += len(content)
        if hashlib.sha256(content).hexdigest() != artifact.sha256:
            verdict.wrong.append(f"{job.id}: {artifact.name} does not match its checksum")
        if content != expected[artifact.name]:
            verdict.wrong.append(
                f"{job.id}: {artifact.name} of attempt {job.attempt} differs from that of an"
                " uninterrupted run"
            )


def orphan_blobs(store: Store) -> list[str]:
    """Blobs that nothing refers to, or that are not whole, in words."""
    needed = (
        exists().where(Dataset.fingerprint == Blob.sha256)
        | exists().where(Job.checkpoint_sha256 == Blob.sha256)
        | exists().where(Artifact.sha256 == Blob.sha256)
    )
    with store.read() as session:
        left = session.scalars(select(Blob).where(~needed | ~Blob.complete)).all()
    return [
        f"blob {blob.sha256} of {blob.created_at}, {'whole' if blob.complete else 'in parts'}"
        for blob in left
    ]


def _judge_blobs(store: Store, verdict: Verdict) -> None:
    verdict.wrong += [f"left, and nothing refers to it: {blob}" for blob in orphan_blobs(store)]


def table(rows: dict[str, Row], verdict: Verdict) -> str:
    """A Markdown table. A job counts in the row of each fault that it was there for."""
    lines = [
        "| fault | injected | jobs | lost | doubled | orphans |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in sorted(rows.items()):
        lost, doubled = len(row.jobs & set(verdict.lost)), len(row.jobs & set(verdict.doubled))
        lines.append(
            f"| {name} | {row.injected} | {len(row.jobs)} | {lost} | {doubled} | {row.orphans} |"
        )
    total = sum(row.injected for row in rows.values())
    orphans = sum(row.orphans for row in rows.values())
    all_jobs = sum(verdict.states.values())
    lines.append(
        f"| **all** | **{total}** | **{all_jobs}** | **{len(verdict.lost)}** |"
        f" **{len(verdict.doubled)}** | **{orphans}** |"
    )
    return "\n".join(lines)
