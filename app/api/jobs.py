"""Jobs: create, list, look at (and wait for), cancel."""

import asyncio
import hashlib
import re
import time
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy import Row
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.api.context import (
    After,
    Context,
    ContextDep,
    Limit,
    multipart_body,
    problems,
)
from app.api.datasets import (
    COLUMNS_DESCRIPTION,
    FILE_DESCRIPTION,
    UPLOAD_PROBLEMS,
    find_dataset,
    quotas_with_room,
    store_upload,
)
from app.downloads import not_modified
from app.errors import ApiError, not_found, validation_error
from app.logs import current_request_id
from app.multipart import is_multipart, receive_form
from app.quotas import take_job
from app.schemas.common import Page
from app.schemas.jobs import Artifact, Job, JobRequest, JobSettings
from app.security import Caller, CallerDep
from app.store import jobs
from app.store import models as rows
from app.store.engine import database_now
from app.store.models import TERMINAL, JobStatus
from app.uploads import upload_limits
from td3engine.config import DistillConfig, build_config

Model = TypeVar("Model", bound=JobSettings)
router = APIRouter(prefix="/jobs", tags=["jobs"])

MAX_JSON_BYTES = 256 * 1024
LONGEST_WAIT_SECONDS = 60
_POLL_SECONDS = (0.1, 1.0)  # first and longest pause while waiting for a job


@router.post(
    "",
    status_code=202,
    operation_id="createJob",
    responses={
        **UPLOAD_PROBLEMS,
        **problems(_400="`invalid_json` or `bad_multipart`"),
        202: {
            "description": "Queued.",
            "headers": {"Location": {"schema": {"type": "string"}}},
        },
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/JobRequest"}},
                **multipart_body(
                    {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": FILE_DESCRIPTION,
                        },
                        "request": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "contentSchema": {"$ref": "#/components/schemas/JobSettings"},
                        },
                        "columns": {"type": "string", "description": COLUMNS_DESCRIPTION},
                    },
                    required=["file"],
                ),
            },
        }
    },
)
async def create_job(
    request: Request, response: Response, context: ContextDep, caller: CallerDep
) -> Job:
    """Distil a dataset, or a file that is uploaded with the request and becomes a dataset."""
    if is_multipart(request):
        job = await _create_from_upload(request, context, caller)
    else:
        asked = _parse(JobRequest, await _read_json(request))
        config = _full_config(asked)
        job = await run_in_threadpool(_submit, context, caller, asked, config, asked.dataset_id)
    response.headers["Location"] = f"/jobs/{job.id}"
    return job


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
) -> Page[Job]:
    """Newest first."""
    with context.store.read() as session:
        found, has_more = jobs.page(
            session,
            tenant_id=caller.tenant_id,
            limit=limit,
            after=after,
            status=status,
            dataset_id=dataset_id,
        )
        return Page(data=[job_view(row) for row in found], has_more=has_more)


@router.get(
    "/{job_id}",
    operation_id="getJob",
    response_model=Job,
    responses={
        **problems(_404="`job_not_found`"),
        200: {
            "headers": {
                "ETag": {"schema": {"type": "string"}},
                "Preference-Applied": {"schema": {"type": "string"}},
            }
        },
        304: {"description": "As it was at the ETag in `If-None-Match`."},
    },
)
async def get_job(
    job_id: str,
    request: Request,
    context: ContextDep,
    caller: CallerDep,
    prefer: Annotated[
        str | None,
        Header(description="`wait=N`: answer once the job is over, or after N (<= 60) seconds."),
    ] = None,
) -> Response:
    """One job."""
    seconds = _wanted_wait(prefer)
    job = await _wait_until_over(request, context, caller, job_id, seconds or 0)
    content = job.model_dump_json().encode()
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache", "Vary": "Prefer"}
    if seconds is not None:
        headers["Preference-Applied"] = f"wait={seconds}"
    if not_modified(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type="application/json")


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    operation_id="cancelJob",
    responses=problems(_404="`job_not_found`", _409="`job_is_over`: it has ended already."),
)
def cancel_job(job_id: str, context: ContextDep, caller: CallerDep) -> Job:
    """Ask for the job's end. A queued job is cancelled at once, a running one is `cancelling` until
    its process is gone. Asking again changes nothing.
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


def find_job(session: Session, caller: Caller, job_id: str) -> rows.Job:
    """The caller's job.

    Raises:
        ApiError: 404 `job_not_found`.
    """
    # What cannot be an id is not asked for: PostgreSQL refuses null characters.
    known = job_id.isidentifier()
    row = jobs.get(session, job_id, tenant_id=caller.tenant_id) if known else None
    if row is None:
        raise not_found("job", job_id)
    return row


def load_job(context: Context, caller: Caller, job_id: str) -> Job:
    """The caller's job as it is now; raises as `find_job` does."""
    with context.store.read() as session:
        # What cannot be an id is not asked for, as in find_job.
        known = job_id.isidentifier()
        found = jobs.look(session, job_id, tenant_id=caller.tenant_id) if known else None
    if found is None:
        raise not_found("job", job_id)
    return job_view(found.job, found.artifacts)


def job_view(
    row: rows.Job | Row[Any], artifacts: Sequence[rows.Artifact | Row[Any]] | None = None
) -> Job:
    """A job as it goes over the wire; where only its columns are given, with its artifacts."""
    return Job(
        **{name: getattr(row, name) for name in Job.model_fields if name != "artifacts"},
        artifacts=[
            Artifact(
                name=artifact.name,
                media_type=artifact.media_type,
                bytes=artifact.bytes,
                sha256=artifact.sha256,
                href=f"/jobs/{row.id}/artifacts/{artifact.name}",
            )
            for artifact in (row.artifacts if artifacts is None else artifacts)
        ],
    )


async def _create_from_upload(request: Request, context: Context, caller: Caller) -> Job:
    quotas = await run_in_threadpool(quotas_with_room, context, caller)
    with context.uploads.one() as folder:
        form = await receive_form(
            request,
            folder / "upload",
            fields=frozenset({"request", "columns"}),
            max_file_bytes=upload_limits(context.settings, quotas).max_bytes,
        )
        asked = _parse(JobSettings, form.fields.get("request") or "{}")
        config = _full_config(asked)  # before the file is read, which takes longer
        dataset = await store_upload(context, caller, quotas, form, name=None)
    return await run_in_threadpool(_submit, context, caller, asked, config, dataset.id)


def _submit(
    context: Context, caller: Caller, asked: JobSettings, config: DistillConfig, dataset_id: str
) -> Job:
    """Commit the job, then ring the bell."""
    quotas_with_room(context, caller)
    with context.store.write() as session:
        if find_dataset(session, caller, dataset_id) is None:
            raise ApiError(
                422,
                "dataset_not_found",
                f"There is no dataset {dataset_id!r}.",
                param="dataset_id",
            )
        take_job(session, context.settings, caller.tenant_id)
        row = jobs.create(
            session,
            tenant_id=caller.tenant_id,
            dataset_id=dataset_id,
            config=config.model_dump(mode="json"),
            preset=asked.preset,
            name=asked.name,
            max_attempts=context.settings.max_attempts,
            request_id=current_request_id(),
        )
        job = job_view(row)
    # Where the broker does not answer this is only logged: the committed row is its own outbox, and
    # a janitor sends it again.
    context.queue.publish(context.store, job.id)
    return job


def _full_config(asked: JobSettings) -> DistillConfig:
    try:
        return build_config(asked.preset, asked.config)
    except ValidationError as error:
        raise validation_error(error, below="config") from error


def _parse(model: type[Model], text: str | bytes) -> Model:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise validation_error(error) from error


async def _read_json(request: Request) -> bytes:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise ApiError(
            415,
            "unsupported_media_type",
            "The body must be application/json or multipart/form-data.",
            headers={"Accept-Post": "application/json, multipart/form-data"},
        )
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise ApiError(413, "too_large", f"The body has more than {MAX_JSON_BYTES} bytes.")
    return bytes(body)


def _wanted_wait(prefer: str | None) -> int | None:
    """Seconds of `Prefer: wait=N` (RFC 7240), at most a minute; a malformed one is ignored."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\b", prefer or "", re.IGNORECASE)
    return min(int(found[1]), LONGEST_WAIT_SECONDS) if found else None


async def _wait_until_over(
    request: Request, context: Context, caller: Caller, job_id: str, seconds: int
) -> Job:
    """The job, once it is over or `seconds` have passed or the client has left.

    Between two looks neither a thread nor a connection is held.
    """
    deadline = time.monotonic() + seconds
    pause, longest_pause = _POLL_SECONDS
    while True:
        job = await run_in_threadpool(load_job, context, caller, job_id)
        left = deadline - time.monotonic()
        over = job.status in TERMINAL or left <= 0 or context.stopping.is_set()
        if over or await request.is_disconnected():
            return job
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 1.5, longest_pause)
