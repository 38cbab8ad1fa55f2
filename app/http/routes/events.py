"""A job's events: as a list, or as server-sent events while they happen."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool

from app.http.auth import Caller, CallerDep
from app.http.context import Context, ContextDep
from app.http.lookups import find_job
from app.http.openapi import problem_responses
from app.http.problems import ApiError, field_error
from app.http.routing import MAX_SEQUENCE, Limit, StrictRoute
from app.http.schemas.common import Page
from app.http.schemas.jobs import JobEvent
from app.store import job_reads
from app.store.models import TERMINAL

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=StrictRoute)

EVENT_STREAM = "text/event-stream"
HEARTBEAT_SECONDS = 15.0
POLL_SECONDS = 0.5
_BATCH = 100


@router.get(
    "/{job_id}/events",
    operation_id="listJobEvents",
    response_model=Page[JobEvent],
    responses={
        **problem_responses(_404="`job_not_found`"),
        200: {
            "description": "The events; as a stream when `Accept: text/event-stream` asks for it, "
            "with `id` = sequence, `event` = type and `data` = the whole event as JSON.",
            "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
        },
        204: {
            "description": "Stream only: the job is over and there is nothing after the last id."
        },
    },
)
async def list_job_events(
    job_id: str,
    context: ContextDep,
    caller: CallerDep,
    *,
    limit: Limit = 100,
    after: Annotated[
        int, Query(ge=0, le=MAX_SEQUENCE, description="Events with a sequence above this one.")
    ] = 0,
    accept: Annotated[str | None, Header()] = None,
    last_event_id: Annotated[
        str | None,
        Header(description="Stream only: what `EventSource` sends to resume; goes before `after`."),
    ] = None,
) -> Page[JobEvent] | Response:
    """The job's events, in order. A stream sends the existing ones, then new ones as they come, and
    ends after the event that ends the job.
    """
    if EVENT_STREAM not in (accept or ""):
        page, _ = await run_in_threadpool(_load, context, caller, job_id, after, limit)
        return page
    after = _resume_from(last_event_id, after)
    page, over = await run_in_threadpool(_load, context, caller, job_id, after, _BATCH)
    if over and not page.data and last_event_id is not None:
        return Response(status_code=204)  # makes an EventSource stop reconnecting
    return EventSourceResponse(
        _stream(context, caller, job_id, page, over, after),
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _stream(
    context: Context, caller: Caller, job_id: str, page: Page[JobEvent], over: bool, after: int
) -> AsyncIterator[bytes]:
    """Events in batches. Between two reads it holds neither a thread nor a connection."""
    last_sent = time.monotonic()
    while True:
        for event in page.data:
            after = event.sequence
            yield format_sse_event(
                data_str=event.model_dump_json(), event=event.type, id=str(event.sequence)
            )
            last_sent = time.monotonic()
        if (over and not page.has_more) or context.stopping.is_set():
            return  # after a stop of the server the client resumes from its last id
        if not page.has_more:
            if time.monotonic() - last_sent >= HEARTBEAT_SECONDS:
                yield KEEPALIVE_COMMENT
                last_sent = time.monotonic()
            await asyncio.sleep(POLL_SECONDS)
        try:
            await context.authenticator.recheck(caller)
            page, over = await run_in_threadpool(_load, context, caller, job_id, after, _BATCH)
        except ApiError:  # the key was revoked or expired, or the job was deleted
            return  # the client learns the reason when it reconnects


def _load(
    context: Context, caller: Caller, job_id: str, after: int, limit: int
) -> tuple[Page[JobEvent], bool]:
    """The events after `after`, and whether the job is over, so that there will be no more."""
    with context.store.read() as session:
        # The status is read first: if it is terminal, the last event is in the database as well.
        over = find_job(session, caller, job_id).status in TERMINAL
        loaded = job_reads.events(
            session, job_id, tenant_id=caller.tenant_id, after=after, limit=limit + 1
        )
    events = [
        JobEvent(sequence=row.sequence, type=row.type, created_at=row.created_at, data=row.data)
        for row in loaded[:limit]
    ]
    return Page(data=events, has_more=len(loaded) > limit), over


def _resume_from(last_event_id: str | None, after: int) -> int:
    if last_event_id is None:
        return after
    if not (last_event_id.isascii() and last_event_id.isdecimal()):
        raise field_error("Last-Event-ID", "int_parsing", "It must be the sequence of an event")
    return min(int(last_event_id[:20]), MAX_SEQUENCE)
