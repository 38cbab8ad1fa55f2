"""Jobs: list, get (and wait for), cancel, delete. Creating them is in submissions.py."""

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.http.auth import CallerDep, caller_of
from app.http.context import ContextDep, context_of
from app.http.downloads import not_modified
from app.http.job_views import JobSnapshot, job_view
from app.http.lookups import find_job
from app.http.openapi import problem_responses
from app.http.problems import ApiError, not_found
from app.http.routing import MAX_SEQUENCE, After, Limit, StrictRoute
from app.http.schemas.common import Name, Page, Time
from app.http.schemas.jobs import Job, MetricsPoint, WebhookDelivery
from app.store import job_reads, jobs, webhooks
from app.store.engine import database_now
from app.store.models import JobStatus
from app.store.retention import remove_job

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=StrictRoute)

# Proxies give up after a minute, and the look after the wait may take another ten seconds.
LONGEST_WAIT_SECONDS = 45
_FIRST_PAUSE_SECONDS = 0.1  # between two looks at a job that a request waits for
_LONGEST_PAUSE_SECONDS = 1.0


@router.get(
    "/{job_id}",
    operation_id="getJob",
    response_model=Job,
    responses={
        **problem_responses(_404="`job_not_found`"),
        200: {
            "headers": {
                "ETag": {"schema": {"type": "string"}},
                "Preference-Applied": {"schema": {"type": "string"}},
            }
        },
        304: {"description": "As it was at the ETag in `If-None-Match`."},
    },
    openapi_extra={
        "parameters": [
            {
                "name": "job_id",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "title": "Job Id"},
            },
            {
                "name": "prefer",
                "in": "header",
                "schema": {"type": "string", "title": "Prefer"},
                "description": "`wait=N`: answer once the job is over, or after N seconds (at most "
                f"{LONGEST_WAIT_SECONDS}, below the minute after which proxies give up).",
            },
        ]
    },
)
async def get_job(request: Request) -> Response:
    """One job."""
    # It declares no parameters: FastAPI takes a fifth of a poll's time to resolve them.
    seconds = _preferred_wait(request.headers.getlist("prefer"))
    snapshot = await _wait_until_over(request, request.path_params["job_id"], seconds or 0)
    headers = {"ETag": snapshot.etag, "Cache-Control": "no-cache", "Vary": "Prefer"}
    if seconds is not None:
        headers["Preference-Applied"] = f"wait={seconds}"
    if not_modified(request, snapshot.etag):
        return Response(status_code=304, headers=headers)
    return Response(snapshot.content, headers=headers, media_type="application/json")


@router.get("", operation_id="listJobs")
def list_jobs(
    context: ContextDep,
    caller: CallerDep,
    limit: Limit = 20,
    after: After = None,
    status: Annotated[JobStatus | None, Query(description="Only jobs of this status.")] = None,
    dataset_id: Annotated[
        str | None,
        Query(max_length=100, pattern=r"^\w+$", description="Only jobs of this dataset."),
    ] = None,
    name: Annotated[Name | None, Query(description="Only jobs that are called exactly so.")] = None,
    created_after: Annotated[
        Time | None,
        Query(description="Only jobs made after this time (RFC 3339, with its zone)."),
    ] = None,
    created_before: Annotated[
        Time | None, Query(description="Only jobs made before this time.")
    ] = None,
) -> Page[Job]:
    """Newest first."""
    with context.store.read() as session:
        page, has_more = job_reads.page(
            session,
            tenant_id=caller.tenant_id,
            limit=limit,
            after=after,
            status=status,
            dataset_id=dataset_id,
            name=name,
            created_after=created_after,
            created_before=created_before,
        )
        return Page(data=[job_view(row) for row in page], has_more=has_more)


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    operation_id="cancelJob",
    responses=problem_responses(
        _404="`job_not_found`", _409="`job_is_over`: it has ended already."
    ),
)
def cancel_job(job_id: str, context: ContextDep, caller: CallerDep) -> Job:
    """Cancel a job. A queued job is cancelled at once, a running one is `cancelling` until its
    process has ended. Repeating the request changes nothing.
    """
    with context.store.write() as session:
        find_job(session, caller, job_id)
        outcome = jobs.request_cancel(
            session, job_id, database_now(session), tenant_id=caller.tenant_id
        )
        job = job_view(find_job(session, caller, job_id))
    if outcome == "terminal":
        raise ApiError(409, "job_is_over", f"The job is {job.status}: there is nothing to cancel.")
    return job


@router.delete(
    "/{job_id}",
    status_code=204,
    operation_id="deleteJob",
    responses=problem_responses(_404="`job_not_found`", _409="`job_not_over`: cancel it first."),
)
def delete_job(job_id: str, context: ContextDep, caller: CallerDep) -> None:
    """Delete a job that is over, with its events and artifacts."""
    with context.store.write() as session:
        find_job(session, caller, job_id)
        outcome = remove_job(session, job_id, tenant_id=caller.tenant_id)
    if outcome == "not_over":
        raise ApiError(409, "job_not_over", "The job is not over: cancel it first.")


@router.get(
    "/{job_id}/metrics",
    operation_id="listJobMetrics",
    responses=problem_responses(_404="`job_not_found`"),
)
def list_job_metrics(
    job_id: str,
    context: ContextDep,
    caller: CallerDep,
    *,
    limit: Limit = 100,
    after: Annotated[
        int,
        Query(ge=0, le=MAX_SEQUENCE, description="Points whose sequence is above this one."),
    ] = 0,
) -> Page[MetricsPoint]:
    """Progress and validation metrics over time: one point per stored progress event. An attempt
    that resumes from a checkpoint repeats the steps after it.
    """
    with context.store.read() as session:
        find_job(session, caller, job_id)
        events = job_reads.events(
            session,
            job_id,
            tenant_id=caller.tenant_id,
            after=after,
            limit=limit + 1,
            type_="progress",
        )
    points = [
        MetricsPoint(sequence=event.sequence, created_at=event.created_at, **event.data)
        for event in events[:limit]
    ]
    return Page(data=points, has_more=len(events) > limit)


@router.get(
    "/{job_id}/deliveries",
    operation_id="listJobDeliveries",
    responses=problem_responses(_404="`job_not_found`"),
)
def list_job_deliveries(
    job_id: str, context: ContextDep, caller: CallerDep
) -> Page[WebhookDelivery]:
    """All messages to the job's webhook, with their delivery; none before the job's end."""
    with context.store.read() as session:
        find_job(session, caller, job_id)
        deliveries = webhooks.of_job(session, job_id)
    return Page(data=[WebhookDelivery.model_validate(row) for row in deliveries], has_more=False)


def _preferred_wait(prefer: Sequence[str]) -> int | None:
    """The seconds of `Prefer: wait=N` (RFC 7240), bounded; None if absent or malformed."""
    if not prefer:
        return None
    match = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\b", ",".join(prefer), re.IGNORECASE)
    return min(int(match[1]), LONGEST_WAIT_SECONDS) if match else None


async def _wait_until_over(request: Request, job_id: str, seconds: int) -> JobSnapshot:
    """The job, once it is over, or `seconds` have passed, or the client has left.

    Between two looks it holds neither a thread nor a connection.
    """
    context, caller = context_of(request), caller_of(request)
    deadline = time.monotonic() + seconds
    pause = _FIRST_PAUSE_SECONDS
    while True:
        snapshot = None
        if job_id.isidentifier():  # see app/http/lookups.py
            snapshot = await context.snapshots.of(caller.tenant_id, job_id)
        if snapshot is None:
            raise not_found("job", job_id)
        left = deadline - time.monotonic()
        done = snapshot.over or left <= 0 or context.stopping.is_set()
        if done or await request.is_disconnected():
            return snapshot
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)
        await context.authenticator.recheck(caller)
