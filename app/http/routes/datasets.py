"""Datasets: upload, list, look at, delete."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.http.auth import Caller, CallerDep
from app.http.body import Patience
from app.http.context import (
    After,
    Context,
    ContextDep,
    Limit,
    StrictRoute,
    multipart_body,
    problems,
)
from app.http.idempotency import Once, respond
from app.http.multipart import Form, is_multipart, receive_form
from app.http.once import IDEMPOTENCY_PROBLEMS, IdempotencyKeyHeader, serve_once
from app.http.problems import ApiError, field_error, not_found, validation_error
from app.http.raw_body import SUFFIXES, receive_raw
from app.http.schemas.common import Name, Page
from app.http.schemas.datasets import ColumnNames, Dataset
from app.http.uploads import NORMALISED_NAME, Prepared, normalise, store_bytes, upload_limits
from app.store import datasets
from app.store import models as rows
from app.store.idempotency import Answer
from app.store.quotas import Quotas, see_room

router = APIRouter(prefix="/datasets", tags=["datasets"], route_class=StrictRoute)

COLUMNS_DESCRIPTION = (
    'Names of the file\'s columns as JSON, e.g. `{"user": "uid", "item": "isbn", "time": "at"}`; '
    "columns left out are found by their usual names."
)
FILE_DESCRIPTION = "The log: CSV, TSV, RecBole .inter or Parquet; gzip or zstd."
UPLOAD_PROBLEMS = problems(
    _400="`bad_multipart`: the form cannot be read.",
    _408="`body_stalled`: the client stopped sending; or `body_too_slow`.",
    _413="`too_large`: the file has more bytes than the service takes.",
    _415="`unsupported_media_type`",
    _422="The file cannot be used (`missing_column`, `bad_value`, `too_large`, ... with `line` and "
    "`column`), or a field is wrong (`validation_error`).",
)
_Name: TypeAdapter[str] = TypeAdapter(Name)


@router.post(
    "",
    status_code=201,
    operation_id="createDataset",
    response_model=Dataset,
    responses={
        **UPLOAD_PROBLEMS,
        **IDEMPOTENCY_PROBLEMS,
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
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": FILE_DESCRIPTION,
                        },
                        "name": {"type": "string", "maxLength": 200},
                        "columns": {"type": "string", "description": COLUMNS_DESCRIPTION},
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
) -> Response:
    """Upload an interaction log, as a form or as the body itself. It is checked and normalised
    before the answer, which has its statistics, and what a job's filter will do to it by default.
    The same interactions under the same name are one dataset, however often they are uploaded.
    """
    quotas = await run_in_threadpool(quotas_with_room, context, caller)
    with context.uploads.one() as folder:
        form = await _receive(request, context, folder / "upload", name, columns, quotas)
        name = name or _parse_name(form.fields.get("name"))
        async with serve_once(request, context, caller, form.content) as once:
            if once.replay is not None:
                return once.replay
            prepared = await prepare_upload(context, quotas, form, name=name)
            return await run_in_threadpool(_save, context, caller, prepared, once)


@router.get("", operation_id="listDatasets")
def list_datasets(
    context: ContextDep, caller: CallerDep, limit: Limit = 20, after: After = None
) -> Page[Dataset]:
    """Newest first."""
    with context.store.read() as session:
        found, has_more = datasets.page(
            session, tenant_id=caller.tenant_id, limit=limit, after=after
        )
    return Page(data=[Dataset.model_validate(row) for row in found], has_more=has_more)


@router.get(
    "/{dataset_id}", operation_id="getDataset", responses=problems(_404="`dataset_not_found`")
)
def get_dataset(dataset_id: str, context: ContextDep, caller: CallerDep) -> Dataset:
    """One dataset."""
    with context.store.read() as session:
        row = find_dataset(session, caller, dataset_id)
    if row is None:
        raise not_found("dataset", dataset_id)
    return Dataset.model_validate(row)


@router.delete(
    "/{dataset_id}",
    status_code=204,
    operation_id="deleteDataset",
    responses=problems(
        _404="`dataset_not_found`", _409="`dataset_in_use`: a job that is not over needs it."
    ),
)
def delete_dataset(dataset_id: str, context: ContextDep, caller: CallerDep) -> None:
    """Delete a dataset. Jobs that are over stay, with what they made."""
    with context.store.write() as session:
        if find_dataset(session, caller, dataset_id) is None:
            raise not_found("dataset", dataset_id)
        outcome = datasets.delete(session, dataset_id, tenant_id=caller.tenant_id)
    if outcome == "in_use":
        raise ApiError(409, "dataset_in_use", "A job that is not over needs this dataset.")


def find_dataset(session: Session, caller: Caller, dataset_id: str) -> rows.Dataset | None:
    """The caller's dataset; what cannot be an id is not asked for (PostgreSQL refuses null
    characters).
    """
    if not dataset_id.isidentifier():
        return None
    return datasets.get(session, dataset_id, tenant_id=caller.tenant_id)


def quotas_with_room(context: Context, caller: Caller) -> Quotas:
    """What the caller may have, of which there is something left.

    Raises:
        ApiError: 429 `storage_full`, before the body is read.
    """
    with context.store.read() as session:
        return see_room(session, context.settings, caller.tenant_id)


async def prepare_upload(
    context: Context, quotas: Quotas, form: Form, *, name: str | None
) -> Prepared:
    """A received file, read in a child process and stored in a thread."""
    try:
        columns = ColumnNames.model_validate_json(form.fields.get("columns") or "{}")
    except ValidationError as error:
        raise validation_error(error, below="columns") from error
    target = form.path.with_name(NORMALISED_NAME)
    async with context.normalising:
        normalised = await normalise(form, target, columns, context.settings, quotas)
    return await run_in_threadpool(store_bytes, context.store, form, normalised, target, name)


async def _receive(
    request: Request,
    context: Context,
    path: Path,
    name: str | None,
    columns: str | None,
    quotas: Quotas,
) -> Form:
    most = upload_limits(context.settings, quotas).max_bytes
    patience = Patience.of(context.settings)
    if not is_multipart(request):
        form = await receive_raw(request, path, name=name, max_file_bytes=most, patience=patience)
        return replace(form, fields={"columns": columns} if columns else {})
    for parameter, value in (("name", name), ("columns", columns)):
        if value is not None:
            raise field_error(parameter, "extra_forbidden", "With a form it is a field of the form")
    fields = frozenset({"name", "columns"})
    return await receive_form(request, path, fields=fields, max_file_bytes=most, patience=patience)


def _save(context: Context, caller: Caller, prepared: Prepared, once: Once) -> Response:
    with context.store.write() as session:
        row = prepared.save(session, context.settings, caller.tenant_id)
        dataset = Dataset.model_validate(row)
        answer = Answer(201, f"/datasets/{row.id}", dataset.model_dump_json())
        once.keep(session, answer)
    return respond(answer)


def _parse_name(text: str | None) -> str | None:
    if not text:
        return None
    try:
        return _Name.validate_python(text)
    except ValidationError as error:
        raise validation_error(error, below="name") from error
