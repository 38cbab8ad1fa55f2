"""Datasets: upload, list, look at."""

from fastapi import APIRouter, Request, Response
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.api.context import After, Context, ContextDep, Limit, multipart_body, problems
from app.errors import not_found, validation_error
from app.multipart import Form, receive_form
from app.quotas import Quotas, see_room
from app.schemas.common import Name, Page
from app.schemas.datasets import ColumnNames, Dataset
from app.security import Caller, CallerDep
from app.store import datasets
from app.store import models as rows
from app.uploads import NORMALISED_NAME, normalise, save, upload_limits

router = APIRouter(prefix="/datasets", tags=["datasets"])

COLUMNS_DESCRIPTION = (
    'Names of the file\'s columns as JSON, e.g. `{"user": "uid", "item": "isbn", "time": "at"}`; '
    "columns left out are found by their usual names."
)
FILE_DESCRIPTION = "The log: CSV, TSV, RecBole .inter or Parquet; gzip or zstd."
UPLOAD_PROBLEMS = problems(
    _400="`bad_multipart`: the form cannot be read.",
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
    responses={
        **UPLOAD_PROBLEMS,
        201: {
            "description": "Stored.",
            "headers": {"Location": {"schema": {"type": "string"}}},
        },
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": multipart_body(
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
        }
    },
)
async def create_dataset(
    request: Request, response: Response, context: ContextDep, caller: CallerDep
) -> Dataset:
    """Upload an interaction log. It is checked and normalised before the answer, which has its
    statistics. Uploading the same interactions twice gives two datasets of one fingerprint.
    """
    quotas = await run_in_threadpool(quotas_with_room, context, caller)
    with context.uploads.one() as folder:
        form = await receive_form(
            request,
            folder / "upload",
            fields=frozenset({"name", "columns"}),
            max_file_bytes=upload_limits(context.settings, quotas).max_bytes,
        )
        name = _parse_name(form.fields.get("name"))
        row = await store_upload(context, caller, quotas, form, name=name)
    response.headers["Location"] = f"/datasets/{row.id}"
    return Dataset.model_validate(row)


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


async def store_upload(
    context: Context, caller: Caller, quotas: Quotas, form: Form, *, name: str | None
) -> rows.Dataset:
    """A received file as a dataset of the caller's: read in a child process, stored in a thread."""
    try:
        columns = ColumnNames.model_validate_json(form.fields.get("columns") or "{}")
    except ValidationError as error:
        raise validation_error(error, below="columns") from error
    target = form.path.with_name(NORMALISED_NAME)
    async with context.normalising:
        normalised = await normalise(form, target, columns, context.settings, quotas)
    return await run_in_threadpool(
        save, context.store, context.settings, caller.tenant_id, form, normalised, target, name
    )


def _parse_name(text: str | None) -> str | None:
    if not text:
        return None
    try:
        return _Name.validate_python(text)
    except ValidationError as error:
        raise validation_error(error, below="name") from error
