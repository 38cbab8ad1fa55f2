"""Runs the normaliser: reads an uploaded file in a child process with limits.

A hostile or huge file then costs its request, and not the service.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from app.errors import DISK_FULL
from app.http.problems import ApiError
from app.http.request_body import FILE_FIELD, ReceivedFile
from app.http.schemas.datasets import DatasetStatistics
from app.processes.environment import environment_without_secrets
from app.processes.launch import launch_command
from app.settings import Settings
from app.store.quotas import Quotas
from td3engine.contract import EXIT_UNUSABLE, NORMALISER
from td3engine.data.types import ColumnNames, Dialect, Limits, LogErrorCode

logger = logging.getLogger(__name__)

# The memory limit counts address space, so libraries must not reserve it without need: one malloc
# arena instead of eight per core, no thread pools, and the system's malloc for Arrow.
_LOW_MEMORY_VARIABLES = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_OUT_OF_MEMORY_SIGNS = (
    "MemoryError",
    "bad_alloc",
    "Cannot allocate memory",
    "malloc of size",
    "Memory allocation still failed",  # OpenBLAS, which ends the process at its import
)


class NormalisedLog(BaseModel):
    """The normaliser's answer about a file that it has normalised."""

    sha256: str
    bytes: int
    statistics: DatasetStatistics


class _Refusal(BaseModel):
    code: LogErrorCode
    message: str
    line: int | None = None
    column: str | None = None


class _RefusalAnswer(BaseModel):
    """The normaliser's answer about a file that it cannot use."""

    error: _Refusal


def upload_limits(settings: Settings, quotas: Quotas | None = None) -> Limits:
    """The limits of an uploaded log, by the settings and by the tenant's quotas.

    Raises:
        pydantic.ValidationError: the setting `upload_limits` has an unknown or impossible limit.
        ApiError: 413 `too_large`: the quotas allow no file at all.
    """
    limits = Limits.model_validate(
        {"max_bytes": settings.max_upload_bytes, **settings.upload_limits}
    )
    if quotas is None:
        return limits
    if quotas.upload_bytes == 0 or quotas.rows == 0:  # `Limits` has no zero
        raise ApiError(413, "too_large", "This tenant may upload no files.", param=FILE_FIELD)
    smaller = {
        "max_bytes": min(limits.max_bytes, quotas.upload_bytes),
        "max_rows": min(limits.max_rows, quotas.rows),
    }
    return limits.model_copy(update=smaller)


async def normalise(
    upload: ReceivedFile,
    target: Path,
    columns: ColumnNames,
    dialect: Dialect,
    settings: Settings,
    quotas: Quotas,
) -> NormalisedLog:
    """Normalise uploaded files to `target` in a child process with limits.

    Args:
        upload: the files.
        target: where the normalised log goes.
        columns: names of its columns that differ from the usual ones.
        dialect: how text files write the log.
        settings: limits of memory and time, and of the log.
        quotas: further limits of the log.

    Raises:
        ApiError: 422 with the normaliser's code, line and column; `too_large` if it ran out of
            memory or time; `bad_format` if the file crashed it.
        OSError: the disk is full.
        RuntimeError: the normaliser failed for a reason that is not the file's.
    """
    command = launch_command(
        [
            *(sys.executable, *NORMALISER, *map(str, upload.paths), str(target)),
            *(f"--name={name}" for name in upload.filenames),
            f"--limits={upload_limits(settings, quotas).model_dump_json()}",
            f"--columns={columns.model_dump_json()}",
            f"--dialect={dialect.model_dump_json()}",
        ],
        memory_bytes=settings.normalise_memory_bytes,
    )
    status, output, stderr = await run_command(command, settings.normalise_seconds)
    if status == 0:
        return NormalisedLog.model_validate_json(output)
    if status == EXIT_UNUSABLE:
        refusal = _RefusalAnswer.model_validate_json(output).error
        raise ApiError(
            422,
            refusal.code,
            refusal.message,
            param=FILE_FIELD,
            line=refusal.line,
            column=refusal.column,
        )
    raise _failure(status, stderr, settings)


async def run_command(command: Sequence[str], seconds: float) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command.

    Raises:
        ApiError: 422 `too_large`: it ran longer than `seconds` and was killed.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**environment_without_secrets(), **_LOW_MEMORY_VARIABLES},
    )
    try:
        async with asyncio.timeout(seconds):
            output, errors = await process.communicate()
    except TimeoutError as error:
        raise _too_large(f"Reading the file takes longer than {seconds:g} seconds.") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace"), errors.decode(errors="replace")


def _failure(status: int, stderr: str, settings: Settings) -> Exception:
    """The error for a normaliser that ended without an answer."""
    memory = f"needs more than {settings.normalise_memory_bytes // 2**20} MiB of memory"
    if status == -signal.SIGKILL or any(sign in stderr for sign in _OUT_OF_MEMORY_SIGNS):
        return _too_large(f"Reading the file {memory}.")
    if status < 0:  # pyarrow aborts on some damaged files, and after some failed allocations
        logger.warning("signal %d ended an upload's reader: %s", -status, stderr[-2000:])
        return ApiError(
            422,
            "bad_format",
            f"The file is damaged, or reading it {memory}: it crashed the reader.",
            param=FILE_FIELD,
        )
    for number in DISK_FULL:
        if os.strerror(number) in stderr:
            return OSError(number, os.strerror(number))
    return RuntimeError(f"the normaliser ended with {status}: {stderr[-2000:]}")


def _too_large(detail: str) -> ApiError:
    return ApiError(422, "too_large", detail, param=FILE_FIELD)
