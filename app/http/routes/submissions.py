"""Jobs are made here: from a dataset, from a file, or from an earlier job."""

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.http.auth import Caller, CallerDep
from app.http.body import Patience
from app.http.context import Context, ContextDep, StrictRoute, multipart_body, problems
from app.http.idempotency import Once, respond
from app.http.job_views import job_view
from app.http.json_body import parse, read_json
from app.http.multipart import is_multipart, receive_form
from app.http.once import IDEMPOTENCY_PROBLEMS, IdempotencyKeyHeader, serve_once
from app.http.problems import ApiError, field_error, validation_error
from app.http.routes.datasets import (
    COLUMNS_DESCRIPTION,
    FILE_DESCRIPTION,
    UPLOAD_PROBLEMS,
    prepare_upload,
    quotas_with_room,
)
from app.http.routes.jobs import find_job
from app.http.schemas.jobs import Job, JobRequest, JobSettings, Webhook
from app.http.uploads import Prepared, upload_limits
from app.logs import current_request_id
from app.store import datasets, jobs
from app.store import models as rows
from app.store.idempotency import Answer
from app.store.models import TERMINAL
from app.store.quotas import take_job
from app.webhook_rules import check_url
from td3engine.config import DistillConfig
from td3engine.presets import build_config

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=StrictRoute)

_QUEUED = {"description": "Queued.", "headers": {"Location": {"schema": {"type": "string"}}}}


@router.post(
    "",
    status_code=202,
    operation_id="createJob",
    response_model=Job,
    responses={
        **UPLOAD_PROBLEMS,
        **problems(_400="`invalid_json` or `bad_multipart`"),
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
    request: Request, context: ContextDep, caller: CallerDep, _key: IdempotencyKeyHeader = None
) -> Response:
    """Distil a dataset, or a file that is uploaded with the request and becomes a dataset."""
    if is_multipart(request):
        return await _create_from_upload(request, context, caller)
    asked = parse(
        JobRequest,
        await read_json(request, Patience.of(context.settings), "multipart/form-data"),
    )
    config = _check(asked, context)
    content = asked.model_dump(mode="json")
    async with serve_once(request, context, caller, content) as once:
        if once.replay is not None:
            return once.replay
        return await run_in_threadpool(
            _submit, context, caller, once, asked, config, asked.dataset_id
        )


@router.post(
    "/{job_id}/retry",
    status_code=202,
    operation_id="retryJob",
    response_model=Job,
    responses={
        **problems(
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
    """A new job of the same request as one that is over; `retry_of` names that one."""
    async with serve_once(request, context, caller, None) as once:
        if once.replay is not None:
            return once.replay
        return await run_in_threadpool(_retry, context, caller, once, job_id)


async def _create_from_upload(request: Request, context: Context, caller: Caller) -> Response:
    quotas = await run_in_threadpool(quotas_with_room, context, caller)
    with context.uploads.one() as folder:
        form = await receive_form(
            request,
            folder / "upload",
            fields=frozenset({"request", "columns"}),
            max_file_bytes=upload_limits(context.settings, quotas).max_bytes,
            patience=Patience.of(context.settings),
        )
        asked = parse(JobSettings, form.fields.get("request") or "{}")
        config = _check(asked, context)  # before the file is read, which takes longer
        async with serve_once(request, context, caller, form.content) as once:
            if once.replay is not None:
                return once.replay
            prepared = await prepare_upload(context, quotas, form, name=None)
            return await run_in_threadpool(_submit, context, caller, once, asked, config, prepared)


def _submit(
    context: Context,
    caller: Caller,
    once: Once,
    asked: JobSettings,
    config: DistillConfig,
    data: str | Prepared,
) -> Response:
    """Commit the job (and its dataset, if that is new), then ring the bell."""
    quotas_with_room(context, caller)
    with context.store.write() as session:
        # The tenant first, then the dataset: in one order, so that nobody waits in a circle.
        take_job(session, context.settings, caller.tenant_id)
        row = jobs.create(
            session,
            tenant_id=caller.tenant_id,
            dataset_id=_held_dataset(session, context, caller, data),
            config=config.model_dump(mode="json"),
            preset=asked.preset,
            name=asked.name,
            max_attempts=context.settings.max_attempts,
            labels=asked.metadata,
            webhook=asked.webhook.model_dump() if asked.webhook else None,
            request_id=current_request_id(),
        )
        answer = _keep(session, once, row)
    return _publish(context, row, answer)


def _held_dataset(session: Session, context: Context, caller: Caller, data: str | Prepared) -> str:
    if isinstance(data, Prepared):
        return data.save(session, context.settings, caller.tenant_id).id
    # What cannot be an id is not asked for: PostgreSQL refuses null characters.
    known = data.isidentifier()
    row = datasets.hold(session, data, tenant_id=caller.tenant_id) if known else None
    if row is None:
        message = f"There is no dataset {data!r}."
        raise ApiError(422, "dataset_not_found", message, param="dataset_id")
    return row.id


def _retry(context: Context, caller: Caller, once: Once, job_id: str) -> Response:
    quotas_with_room(context, caller)
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
        answer = _keep(session, once, row)
    return _publish(context, row, answer)


def _keep(session: Session, once: Once, row: rows.Job) -> Answer:
    answer = Answer(202, f"/jobs/{row.id}", job_view(row).model_dump_json())
    once.keep(session, answer)
    return answer


def _publish(context: Context, row: rows.Job, answer: Answer) -> Response:
    # Where the broker does not answer this is only logged: the committed row is its own outbox, and
    # a janitor sends it again.
    context.queue.publish(context.store, row.id)
    return respond(answer)


def _check(asked: JobSettings, context: Context) -> DistillConfig:
    """What the models cannot see by themselves; returns the full configuration."""
    if asked.webhook is not None:
        _check_webhook(asked.webhook, context)
    config: dict[str, Any] = asked.config
    if asked.seed is not None:
        if config.get("seed", asked.seed) != asked.seed:
            raise field_error("seed", "contradiction", "config.seed says something else")
        config = {**config, "seed": asked.seed}
    try:
        return build_config(asked.preset, config)
    except ValidationError as error:
        raise validation_error(error, below="config") from error


def _check_webhook(webhook: Webhook, context: Context) -> None:
    try:
        check_url(webhook.url, context.settings.webhook_networks)
    except ValueError as error:
        raise field_error("webhook.url", "url_not_allowed", str(error)) from error
