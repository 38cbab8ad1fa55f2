"""Creates jobs: from a dataset, from an uploaded file, or as a retry of an earlier job."""

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.http.auth import Caller, CallerDep
from app.http.context import Context, ContextDep
from app.http.idempotency import (
    IDEMPOTENCY_PROBLEMS,
    IdempotencyKeyHeader,
    KeyState,
    serve_once,
    to_response,
)
from app.http.job_views import job_view
from app.http.lookups import find_job
from app.http.multipart import is_multipart, receive_form
from app.http.normaliser import upload_limits
from app.http.openapi import multipart_body, problem_responses
from app.http.problems import ApiError, field_error, validation_error
from app.http.request_body import BodyTimeouts, parse, read_json
from app.http.routing import StrictRoute
from app.http.schemas.jobs import Job, JobRequest, JobSettings, Webhook
from app.http.uploads import (
    FILE_SCHEMA,
    LOG_FIELDS,
    UPLOAD_PROBLEMS,
    PreparedUpload,
    prepare_upload,
    require_upload_quota,
)
from app.logs import current_request_id
from app.store import datasets, jobs
from app.store import models as rows
from app.store.idempotency import Answer
from app.store.models import TERMINAL
from app.store.quotas import take_job
from app.webhook_rules import check_url
from td3engine.config import DistillConfig
from td3engine.config.presets import build_config

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=StrictRoute)

_QUEUED = {"description": "Queued.", "headers": {"Location": {"schema": {"type": "string"}}}}


@router.post(
    "",
    status_code=202,
    operation_id="createJob",
    response_model=Job,
    responses={
        **UPLOAD_PROBLEMS,
        **problem_responses(_400="`invalid_json` or `bad_multipart`"),
        **IDEMPOTENCY_PROBLEMS,
        202: _QUEUED,
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/JobRequest"}},
                **multipart_body(
                    {
                        "file": FILE_SCHEMA,
                        "request": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "contentSchema": {"$ref": "#/components/schemas/JobSettings"},
                        },
                        **LOG_FIELDS,
                    },
                    required=["file"],
                ),
            },
        }
    },
)
async def create_job(
    request: Request, context: ContextDep, caller: CallerDep, _key: IdempotencyKeyHeader = None
) -> Response:
    """Distil a dataset, or a file that is uploaded with the request and becomes a dataset."""
    if is_multipart(request):
        return await _create_from_upload(request, context, caller)
    timeouts = BodyTimeouts.from_settings(context.settings)
    job_request = parse(JobRequest, await read_json(request, timeouts, "multipart/form-data"))
    config = _full_config(job_request, context)
    content = job_request.model_dump(mode="json")
    async with serve_once(request, context, caller, content) as key:
        if key.replay is not None:
            return key.replay
        return await run_in_threadpool(
            _submit, context, caller, key, job_request, config, job_request.dataset_id
        )


@router.post(
    "/{job_id}/retry",
    status_code=202,
    operation_id="retryJob",
    response_model=Job,
    responses={
        **problem_responses(
            _404="`job_not_found`",
            _409="`job_not_over`; `dataset_deleted`: its data is gone; or "
            "`idempotency_key_in_use`: its request is being served, see `Retry-After`.",
        ),
        202: _QUEUED,
    },
)
async def retry_job(
    job_id: str,
    request: Request,
    context: ContextDep,
    caller: CallerDep,
    _key: IdempotencyKeyHeader = None,
) -> Response:
    """Create a job with the same request as one that is over; `retry_of` names that one."""
    async with serve_once(request, context, caller, None) as key:
        if key.replay is not None:
            return key.replay
        return await run_in_threadpool(_retry, context, caller, key, job_id)


async def _create_from_upload(request: Request, context: Context, caller: Caller) -> Response:
    quotas = await run_in_threadpool(require_upload_quota, context, caller)
    with context.uploads.one() as folder:
        upload = await receive_form(
            request,
            folder / "upload",
            fields=frozenset({"request", *LOG_FIELDS}),
            max_file_bytes=upload_limits(context.settings, quotas).max_bytes,
            timeouts=BodyTimeouts.from_settings(context.settings),
        )
        job_settings = parse(JobSettings, upload.fields.get("request") or "{}")
        config = _full_config(job_settings, context)  # before the file is read, which takes longer
        async with serve_once(request, context, caller, upload.content) as key:
            if key.replay is not None:
                return key.replay
            prepared = await prepare_upload(context, quotas, upload, name=None)
            return await run_in_threadpool(
                _submit, context, caller, key, job_settings, config, prepared
            )


def _submit(
    context: Context,
    caller: Caller,
    key: KeyState,
    job_settings: JobSettings,
    config: DistillConfig,
    data: str | PreparedUpload,
) -> Response:
    """Commit the job, and its dataset if that is new; then send the job's id to the broker."""
    require_upload_quota(context, caller)
    with context.store.write() as session:
        # Locks are always taken in this order, tenant before dataset, to avoid deadlocks.
        take_job(session, context.settings, caller.tenant_id)
        row = jobs.create(
            session,
            tenant_id=caller.tenant_id,
            dataset_id=_hold_dataset(session, context, caller, data),
            config=config.model_dump(mode="json"),
            preset=job_settings.preset,
            name=job_settings.name,
            max_attempts=context.settings.max_attempts,
            labels=job_settings.metadata,
            webhook=job_settings.webhook.model_dump() if job_settings.webhook else None,
            request_id=current_request_id(),
        )
        answer = _save_answer(session, key, row)
    return _publish(context, row, answer)


def _hold_dataset(
    session: Session, context: Context, caller: Caller, data: str | PreparedUpload
) -> str:
    if isinstance(data, PreparedUpload):
        return data.save(session, context.settings, caller.tenant_id).id
    valid = data.isidentifier()  # see app/http/lookups.py
    row = datasets.hold(session, data, tenant_id=caller.tenant_id) if valid else None
    if row is None:
        message = f"There is no dataset {data!r}."
        raise ApiError(422, "dataset_not_found", message, param="dataset_id")
    return row.id


def _retry(context: Context, caller: Caller, key: KeyState, job_id: str) -> Response:
    require_upload_quota(context, caller)
    with context.store.write() as session:
        take_job(session, context.settings, caller.tenant_id)
        old = find_job(session, caller, job_id)
        if old.status not in TERMINAL:
            raise ApiError(409, "job_not_over", f"The job is {old.status}: it may still succeed.")
        if datasets.hold(session, old.dataset_id, tenant_id=caller.tenant_id) is None:
            raise ApiError(409, "dataset_deleted", "The dataset of this job has been deleted.")
        row = jobs.create(
            session,
            tenant_id=caller.tenant_id,
            dataset_id=old.dataset_id,
            config=old.config,
            preset=old.preset,
            name=old.name,
            max_attempts=context.settings.max_attempts,
            labels=old.labels,
            webhook=old.webhook,
            retry_of=old.id,
            request_id=current_request_id(),
        )
        answer = _save_answer(session, key, row)
    return _publish(context, row, answer)


def _save_answer(session: Session, key: KeyState, row: rows.Job) -> Answer:
    answer = Answer(202, f"/jobs/{row.id}", job_view(row).model_dump_json())
    key.save_answer(session, answer)
    return answer


def _publish(context: Context, row: rows.Job, answer: Answer) -> Response:
    # An outage of the broker is only logged: the committed row is the outbox, and a worker's
    # janitor sends the id again.
    context.queue.publish(context.store, row.id)
    return to_response(answer)


def _full_config(job_settings: JobSettings, context: Context) -> DistillConfig:
    """The full configuration: the preset with the request's changes.

    Raises:
        ApiError: 422: the configuration or the webhook's URL is not allowed.
    """
    if job_settings.webhook is not None:
        _check_webhook(job_settings.webhook, context)
    config: dict[str, Any] = job_settings.config
    seed = job_settings.seed
    if seed is not None:
        if config.get("seed", seed) != seed:
            raise field_error("seed", "contradiction", "config.seed says something else")
        config = {**config, "seed": seed}
    try:
        return build_config(job_settings.preset, config)
    except ValidationError as error:
        raise validation_error(error, below="config") from error


def _check_webhook(webhook: Webhook, context: Context) -> None:
    try:
        check_url(webhook.url, context.settings.webhook_networks)
    except ValueError as error:
        raise field_error("webhook.url", "url_not_allowed", str(error)) from error
