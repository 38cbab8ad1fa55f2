"""Datasets: upload, list, get, delete."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter, ValidationError
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
from app.http.lookups import find_dataset
from app.http.multipart import is_multipart, receive_form
from app.http.normaliser import upload_limits
from app.http.openapi import multipart_body, problem_responses
from app.http.problems import ApiError, field_error, validation_error
from app.http.request_body import SUFFIXES, BodyTimeouts, ReceivedFile, receive_file
from app.http.routing import After, Limit, StrictRoute
from app.http.schemas.common import Name, Page
from app.http.schemas.datasets import Dataset, DatasetPreview
from app.http.uploads import (
    COLUMNS_DESCRIPTION,
    DIALECT_DESCRIPTION,
    FILE_SCHEMA,
    LOG_FIELDS,
    UPLOAD_PROBLEMS,
    PreparedUpload,
    prepare_upload,
    read_upload,
    require_upload_quota,
)
from app.store import datasets
from app.store.idempotency import Answer
from app.store.quotas import Quotas

router = APIRouter(prefix="/datasets", tags=["datasets"], route_class=StrictRoute)

_Name: TypeAdapter[str] = TypeAdapter(Name)


@router.post(
    "",
    status_code=201,
    operation_id="createDataset",
    response_model=Dataset,
    responses={
        **UPLOAD_PROBLEMS,
        **IDEMPOTENCY_PROBLEMS,
        200: {"model": DatasetPreview, "description": "A dry run: nothing was kept."},
        201: {
            "description": "Stored, or there already.",
            "headers": {"Location": {"schema": {"type": "string"}}},
        },
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                **multipart_body(
                    {
                        "file": FILE_SCHEMA,
                        "name": {"type": "string", "maxLength": 200},
                        **LOG_FIELDS,
                    },
                    required=["file"],
                ),
                **{
                    media_type: {"schema": {"type": "string", "format": "binary"}}
                    for media_type in SUFFIXES
                },
            },
        }
    },
)
async def create_dataset(
    request: Request,
    context: ContextDep,
    caller: CallerDep,
    _key: IdempotencyKeyHeader = None,
    name: Annotated[
        Name | None, Query(description="Where the body is the file; else a field of the form.")
    ] = None,
    columns: Annotated[
        str | None, Query(max_length=4000, description=f"Like `name`. {COLUMNS_DESCRIPTION}")
    ] = None,
    dialect: Annotated[
        str | None, Query(max_length=4000, description=f"Like `name`. {DIALECT_DESCRIPTION}")
    ] = None,
    dry_run: Annotated[
        bool,
        Query(
            description="Read the log and answer what it is (200, a `DatasetPreview`); keep it not."
        ),
    ] = False,
) -> Response:
    """Upload an interaction log, as a form or as the body itself. It is checked and normalised
    before the answer, which has its statistics before and after a job's default filter. Equal
    interactions under the same name are one dataset, however often they are uploaded, in whatever
    order of rows.
    """
    quotas = await run_in_threadpool(require_upload_quota, context, caller)
    with context.uploads.one() as folder:
        beside = {"name": name, "columns": columns, "dialect": dialect}
        upload = await _receive(request, context, folder / "upload", beside, quotas)
        if dry_run:
            log = await read_upload(context, quotas, upload)
            preview = DatasetPreview(source_bytes=upload.bytes, statistics=log.statistics)
            return Response(preview.model_dump_json(), media_type="application/json")
        name = name or _parse_name(upload.fields.get("name"))
        async with serve_once(request, context, caller, upload.content) as key:
            if key.replay is not None:
                return key.replay
            prepared = await prepare_upload(context, quotas, upload, name=name)
            return await run_in_threadpool(_save, context, caller, prepared, key)


@router.get("", operation_id="listDatasets")
def list_datasets(
    context: ContextDep, caller: CallerDep, limit: Limit = 20, after: After = None
) -> Page[Dataset]:
    """Newest first."""
    with context.store.read() as session:
        page, has_more = datasets.page(
            session, tenant_id=caller.tenant_id, limit=limit, after=after
        )
    return Page(data=[Dataset.model_validate(row) for row in page], has_more=has_more)


@router.get(
    "/{dataset_id}",
    operation_id="getDataset",
    responses=problem_responses(_404="`dataset_not_found`"),
)
def get_dataset(dataset_id: str, context: ContextDep, caller: CallerDep) -> Dataset:
    """One dataset."""
    with context.store.read() as session:
        row = find_dataset(session, caller, dataset_id)
    return Dataset.model_validate(row)


@router.delete(
    "/{dataset_id}",
    status_code=204,
    operation_id="deleteDataset",
    responses=problem_responses(
        _404="`dataset_not_found`", _409="`dataset_in_use`: a job that is not over needs it."
    ),
)
def delete_dataset(dataset_id: str, context: ContextDep, caller: CallerDep) -> None:
    """Delete a dataset. Jobs that are over stay, with their artifacts."""
    with context.store.write() as session:
        find_dataset(session, caller, dataset_id)
        outcome = datasets.delete(session, dataset_id, tenant_id=caller.tenant_id)
    if outcome == "in_use":
        raise ApiError(409, "dataset_in_use", "A job that is not over needs this dataset.")


async def _receive(
    request: Request,
    context: Context,
    path: Path,
    beside: dict[str, str | None],
    quotas: Quotas,
) -> ReceivedFile:
    """The uploaded files; `beside` are query parameters that stand for fields of a form."""
    max_bytes = upload_limits(context.settings, quotas).max_bytes
    timeouts = BodyTimeouts.from_settings(context.settings)
    if not is_multipart(request):
        upload = await receive_file(
            request, path, name=beside["name"], max_file_bytes=max_bytes, timeouts=timeouts
        )
        fields = {name: value for name in LOG_FIELDS if (value := beside[name])}
        return replace(upload, fields=fields)
    for parameter, value in beside.items():
        if value is not None:
            raise field_error(parameter, "extra_forbidden", "With a form it is a field of the form")
    allowed = frozenset(beside)
    return await receive_form(
        request, path, fields=allowed, max_file_bytes=max_bytes, timeouts=timeouts
    )


def _save(context: Context, caller: Caller, prepared: PreparedUpload, key: KeyState) -> Response:
    with context.store.write() as session:
        row = prepared.save(session, context.settings, caller.tenant_id)
        dataset = Dataset.model_validate(row)
        answer = Answer(201, f"/datasets/{row.id}", dataset.model_dump_json())
        key.save_answer(session, answer)
    return to_response(answer)


def _parse_name(text: str | None) -> str | None:
    if not text:
        return None
    try:
        return _Name.validate_python(text)
    except ValidationError as error:
        raise validation_error(error, below="name") from error
