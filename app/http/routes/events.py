"""What happened to a job: as a list, or as server-sent events while it happens."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool

from app.http.auth import Caller, CallerDep
from app.http.context import Context, ContextDep, Limit, StrictRoute, problems
from app.http.problems import ApiError, field_error
from app.http.routes.jobs import MAX_SEQUENCE, find_job
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
        **problems(_404="`job_not_found`"),
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
    """What happened to the job, in order. A stream sends what there is, then what comes, and ends
    after the event that ends the job.
    """
    if EVENT_STREAM not in (accept or ""):
        page, _ = await run_in_threadpool(_load, context, caller, job_id, after, limit)
        return page
    after = _resume_from(last_event_id, after)
    page, over = await run_in_threadpool(_load, context, caller, job_id, after, _BATCH)
    if over and not page.data and last_event_id is not None:
        return Response(status_code=204)  # tells an EventSource to stop reconnecting
    return EventSourceResponse(
        _stream(context, caller, job_id, page, over, after),
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _stream(
    context: Context, caller: Caller, job_id: str, page: Page[JobEvent], over: bool, after: int
) -> AsyncIterator[bytes]:
    """Batches of events as they come. Between two looks neither thread nor connection is held."""
    last_sent = time.monotonic()
    while True:
        for event in page.data:
            after = event.sequence
            yield format_sse_event(
                data_str=event.model_dump_json(), event=event.type, id=str(event.sequence)
            )
            last_sent = time.monotonic()
        if (over and not page.has_more) or context.stopping.is_set():
            return  # where the server stops, the client resumes with the id that it has
        if not page.has_more:
            if time.monotonic() - last_sent >= HEARTBEAT_SECONDS:
                yield KEEPALIVE_COMMENT
                last_sent = time.monotonic()
            await asyncio.sleep(POLL_SECONDS)
        try:
            await context.doorkeeper.check_again(caller)
            page, over = await run_in_threadpool(_load, context, caller, job_id, after, _BATCH)
        except ApiError:  # the key is not good any more, or the job was deleted
            return  # the client is told why when it comes back


def _load(
    context: Context, caller: Caller, job_id: str, after: int, limit: int
) -> tuple[Page[JobEvent], bool]:
    """Events after `after`, and whether the job is over, so that no more will come."""
    with context.store.read() as session:
        # The status first: when it is terminal, the event that made it so is there as well.
        over = find_job(session, caller, job_id).status in TERMINAL
        found = job_reads.events(
            session, job_id, tenant_id=caller.tenant_id, after=after, limit=limit + 1
        )
    events = [
        JobEvent(sequence=row.sequence, type=row.type, created_at=row.created_at, data=row.data)
        for row in found[:limit]
    ]
    return Page(data=events, has_more=len(found) > limit), over


def _resume_from(last_event_id: str | None, after: int) -> int:
    if last_event_id is None:
        return after
    if not (last_event_id.isascii() and last_event_id.isdecimal()):
        raise field_error("Last-Event-ID", "int_parsing", "It must be the sequence of an event")
    return min(int(last_event_id[:20]), MAX_SEQUENCE)
