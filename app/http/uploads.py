"""From a received file to a dataset: normalise it, store its bytes, save the row."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.blobs.protocol import BlobStore
from app.http.auth import Caller
from app.http.context import Context
from app.http.normaliser import NormalisedLog, normalise
from app.http.openapi import problem_responses
from app.http.problems import validation_error
from app.http.request_body import Model, ReceivedFile
from app.http.schemas.datasets import DatasetStatistics
from app.settings import Settings
from app.store import datasets
from app.store.models import Dataset
from app.store.quotas import Quotas, require_storage, take_bytes
from td3engine.data.types import ColumnNames, Dialect

NORMALISED_NAME = "normalised.parquet"
COLUMNS_DESCRIPTION = (
    'Names of the file\'s columns as JSON, e.g. `{"user": "uid", "item": "isbn", "time": "at"}`; '
    "columns left out are found by their usual names. A number is a position, from 1."
)
DIALECT_DESCRIPTION = (
    'How a text file writes the log as JSON, e.g. `{"delimiter": "::", "header": false, '
    '"time_format": "%d/%m/%Y"}`; what is left out is found by looking.'
)
FILE_DESCRIPTION = (
    "The log: CSV, TSV, RecBole .inter, JSON lines or Parquet; gzip, zstd, bzip2 or xz. Several "
    "files are one log."
)
FILE_SCHEMA = {
    "type": "array",
    "items": {"type": "string", "format": "binary"},
    "minItems": 1,
    "description": FILE_DESCRIPTION,
}
LOG_FIELDS = {
    "columns": {"type": "string", "description": COLUMNS_DESCRIPTION},
    "dialect": {"type": "string", "description": DIALECT_DESCRIPTION},
}
UPLOAD_PROBLEMS = problem_responses(
    _400="`bad_multipart`: the form cannot be read.",
    _408="`body_stalled`: the client stopped sending; or `body_too_slow`.",
    _413="`too_large`: the file has more bytes than the service takes.",
    _415="`unsupported_media_type`",
    _422="The file cannot be used (`missing_column`, `bad_value`, `too_large`, ... with `line` and "
    "`column`), or a field is wrong (`validation_error`).",
)


@dataclass(frozen=True)
class PreparedUpload:
    """A normalised log whose bytes are stored and which has no dataset row yet."""

    name: str
    fingerprint: str
    source_sha256: str
    source_bytes: int
    statistics: DatasetStatistics
    stored_bytes: int

    def save(self, session: Session, settings: Settings, tenant_id: str) -> Dataset:
        """The tenant's dataset of this log and name: the existing one, or a new one.

        Raises:
            QuotaExceededError: `storage_full`.
        """
        if not datasets.exists_already(
            session, tenant_id=tenant_id, fingerprint=self.fingerprint, name=self.name
        ):
            take_bytes(session, settings, tenant_id, self.stored_bytes)
        return datasets.create(
            session,
            tenant_id=tenant_id,
            name=self.name,
            fingerprint=self.fingerprint,
            source_sha256=self.source_sha256,
            source_bytes=self.source_bytes,
            statistics=self.statistics.model_dump(mode="json"),
        )


def require_upload_quota(context: Context, caller: Caller) -> Quotas:
    """The caller's quotas, checked before the body is read.

    Raises:
        QuotaExceededError: `storage_full`.
    """
    with context.store.read() as session:
        return require_storage(session, context.settings, caller.tenant_id)


async def prepare_upload(
    context: Context, quotas: Quotas, upload: ReceivedFile, *, name: str | None
) -> PreparedUpload:
    """Normalise a received file in a child process, and store the result's bytes.

    Raises:
        ApiError: 422; see `normalise`, or the form's field `columns` is wrong.
        OSError: the disk is full.
        RuntimeError: the normaliser failed for a reason that is not the file's.
    """
    log = await read_upload(context, quotas, upload)
    target = upload.folder / NORMALISED_NAME
    return await run_in_threadpool(store_bytes, context.blobs, upload, log, target, name)


async def read_upload(context: Context, quotas: Quotas, upload: ReceivedFile) -> NormalisedLog:
    """Normalise received files in a child process; the log is beside them.

    Raises:
        ApiError: 422; see `normalise`, or one of the form's fields `columns` and `dialect` is
            wrong.
        OSError: the disk is full.
        RuntimeError: the normaliser failed for a reason that is not the file's.
    """
    columns = _field(ColumnNames, upload, "columns")
    dialect = _field(Dialect, upload, "dialect")
    target = upload.folder / NORMALISED_NAME
    async with context.normalising:
        return await normalise(upload, target, columns, dialect, context.settings, quotas)


def _field(model: type[Model], upload: ReceivedFile, name: str) -> Model:
    try:
        return model.model_validate_json(upload.fields.get(name) or "{}")
    except ValidationError as error:
        raise validation_error(error, below=name) from error


def store_bytes(
    blobs: BlobStore, upload: ReceivedFile, log: NormalisedLog, target: Path, name: str | None
) -> PreparedUpload:
    """Store the normalised log's bytes. Save the dataset soon, or the bytes are swept.

    Raises:
        BlobError: the bytes could not be stored.
        StorageUnavailableError: the blob store does not answer.
    """
    blob = blobs.put_file(target)
    return PreparedUpload(
        name=name or upload.filename or "dataset",
        fingerprint=blob.sha256,
        source_sha256=upload.sha256,
        source_bytes=upload.bytes,
        statistics=log.statistics,
        stored_bytes=blob.bytes,
    )
