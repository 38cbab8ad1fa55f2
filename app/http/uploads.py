"""From an uploaded file to a stored dataset.

The file lies in a folder of its own below `data_dir/uploads`, which goes when the request ends,
however it ends. What reads it is a child process with limits, so that a hostile or huge file costs
that request and not the service.
"""

import asyncio
import fcntl
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel
from sqlalchemy.orm import Session

from app.blobs import sql as blobs
from app.http.multipart import FILE_FIELD, Form
from app.http.problems import DISK_FULL, ApiError
from app.http.schemas.datasets import DatasetStatistics
from app.processes.launch import environment_without_secrets, launch_command
from app.settings import Settings
from app.store import datasets
from app.store.engine import Store
from app.store.models import Dataset
from app.store.quotas import Quotas, take_bytes
from td3engine.interactions import ColumnNames, Limits, LogErrorCode

logger = logging.getLogger(__name__)

NORMALISED_NAME = "normalised.parquet"
_EXIT_BAD_DATA = 65
# Address space is what the limit counts, so libraries must not reserve it without need: one malloc
# arena instead of eight a core, no pools of threads, and plain malloc for Arrow.
_THRIFTY = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_OUT_OF_MEMORY = ("MemoryError", "bad_alloc", "Cannot allocate memory", "malloc of size")


class _Refusal(BaseModel):
    """What the child says about a file it cannot use."""

    code: LogErrorCode
    message: str
    line: int | None = None
    column: str | None = None


class Normalised(BaseModel):
    """What the child says about a file it has normalised."""

    sha256: str
    bytes: int
    statistics: DatasetStatistics


class _Answer(BaseModel):
    error: _Refusal


@dataclass(frozen=True)
class UploadFolders:
    """Where uploads lie while they are worked on."""

    root: Path

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """To be held while the service runs: clears what a killed predecessor left behind.

        The lock is shared between processes that use the same folder; only the first of them can
        have it alone, and then everything in the folder is stale.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.root, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # somebody is serving from here, so the folder's content is alive
            else:
                for stale in self.root.iterdir():
                    shutil.rmtree(stale)
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield
        finally:
            os.close(handle)

    @contextmanager
    def one(self) -> Iterator[Path]:
        """A folder for one upload."""
        with tempfile.TemporaryDirectory(dir=self.root, prefix="upload-") as folder:
            yield Path(folder)


def upload_limits(settings: Settings, quotas: Quotas | None = None) -> Limits:
    """What an uploaded log may cost.

    Raises:
        pydantic.ValidationError: the setting `upload_limits` has an unknown or impossible limit.
        ApiError: 413 `too_large`: the quotas leave room for no file at all.
    """
    given = {"max_bytes": settings.max_upload_bytes, **settings.upload_limits}
    limits = Limits.model_validate(given)
    if quotas is None:
        return limits
    if quotas.upload_bytes == 0 or quotas.rows == 0:  # which `Limits` cannot say
        raise ApiError(413, "too_large", "This tenant may upload no files.", param=FILE_FIELD)
    smaller = {
        "max_bytes": min(limits.max_bytes, quotas.upload_bytes),
        "max_rows": min(limits.max_rows, quotas.rows),
    }
    return limits.model_copy(update=smaller)


async def normalise(
    form: Form, target: Path, columns: ColumnNames, settings: Settings, quotas: Quotas
) -> Normalised:
    """Normalise the uploaded file to `target` in a child process with limits.

    Raises:
        ApiError: 422 with the reader's code, line and column; `too_large` where it ran out of
            memory or time; `bad_format` where the file crashed it.
        OSError: the disk is full.
        RuntimeError: the child failed for another reason that is not the file's.
    """
    command = launch_command(
        [
            *(sys.executable, "-m", "td3engine.interactions", str(form.path), str(target)),
            f"--name={form.filename}",
            f"--limits={upload_limits(settings, quotas).model_dump_json()}",
            f"--columns={columns.model_dump_json()}",
        ],
        memory_bytes=settings.normalise_memory_bytes,
    )
    status, output, complaints = await _run(command, settings.normalise_seconds)
    if status == 0:
        return Normalised.model_validate_json(output)
    if status == _EXIT_BAD_DATA:
        refusal = _Answer.model_validate_json(output).error
        raise ApiError(
            422,
            refusal.code,
            refusal.message,
            param=FILE_FIELD,
            line=refusal.line,
            column=refusal.column,
        )
    memory = f"needs more than {settings.normalise_memory_bytes // 2**20} MiB of memory"
    if status == -signal.SIGKILL or any(sign in complaints for sign in _OUT_OF_MEMORY):
        raise _too_large(f"Reading the file {memory}.")
    if status < 0:  # pyarrow aborts on some damaged files, and where some allocations fail
        logger.warning("signal %d ended an upload's reader: %s", -status, complaints[-2000:])
        raise ApiError(
            422,
            "bad_format",
            f"The file is damaged, or reading it {memory}: it crashed the reader.",
            param=FILE_FIELD,
        )
    for number in DISK_FULL:
        if os.strerror(number) in complaints:
            raise OSError(number, os.strerror(number))
    raise RuntimeError(f"td3engine.interactions ended with {status}: {complaints[-2000:]}")


async def _run(command: Sequence[str], seconds: float) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command that is killed after `seconds`."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**environment_without_secrets(), **_THRIFTY},
    )
    try:
        async with asyncio.timeout(seconds):
            output, complaints = await process.communicate()
    except TimeoutError as error:
        raise _too_large(f"Reading the file takes longer than {seconds:g} seconds.") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace"), complaints.decode(errors="replace")


@dataclass(frozen=True)
class Prepared:
    """A normalised log whose bytes are stored, and which is no dataset yet."""

    name: str
    fingerprint: str
    source_sha256: str
    source_bytes: int
    statistics: DatasetStatistics
    stored_bytes: int

    def save(self, session: Session, settings: Settings, tenant_id: str) -> Dataset:
        """The tenant's dataset of it: the one that there is already, or a new one.

        Raises:
            ApiError: 429 `storage_full`.
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


def store_bytes(
    store: Store, form: Form, normalised: Normalised, target: Path, name: str | None
) -> Prepared:
    """Store the normalised log's bytes; make them a dataset soon, or they are swept."""
    fingerprint, size = blobs.put_file(store, target)
    return Prepared(
        name=name or form.filename or "dataset",
        fingerprint=fingerprint,
        source_sha256=form.sha256,
        source_bytes=form.bytes,
        statistics=normalised.statistics,
        stored_bytes=size,
    )


def _too_large(detail: str) -> ApiError:
    return ApiError(422, "too_large", detail, param=FILE_FIELD)
