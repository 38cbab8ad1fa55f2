"""Reads request bodies with limits of size and time: raw bytes, JSON, and files.

Clients may stop sending without closing, send for ever, or announce one size and send another.
FastAPI's own readers have no such limits. Forms are in app/http/multipart.py.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from app.http.problems import ApiError, ServiceCode, validation_error
from app.settings import Settings

FILE_FIELD = "file"
MAX_JSON_BYTES = 256 * 1024
# Suffix of the file name by media type. The suffix tells the normaliser the format; without one it
# detects the format itself.
SUFFIXES = {
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "text/plain": "",
    "application/x-ndjson": ".jsonl",
    "application/jsonl": ".jsonl",
    "application/vnd.apache.parquet": ".parquet",
    "application/gzip": "",
    "application/zstd": "",
    "application/x-bzip2": "",
    "application/x-xz": "",
    "application/octet-stream": "",
}
_JSON = "application/json"
_ENCODINGS = ("", "identity", "gzip", "zstd")  # the normaliser detects them by their first bytes

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class BodyTimeouts:
    """How many seconds a body may take.

    Attributes:
        pause: between two pieces.
        total: for the whole body; stops clients that send a byte now and then.
    """

    pause: float
    total: float

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The time-outs of the settings."""
        return cls(settings.stall_seconds, settings.upload_seconds)


@dataclass(frozen=True)
class ReceivedFile:
    """A file that was received, or several, with the text fields that came with them.

    Attributes:
        paths: where the files are, in the order in which they came.
        filenames: as the client calls them.
        bytes: of all files.
        sha256: of all files, one after the other.
        fields: the text fields.
    """

    paths: tuple[Path, ...]
    filenames: tuple[str, ...]
    bytes: int
    sha256: str
    fields: dict[str, str]

    @property
    def filename(self) -> str:
        """What the first file is called."""
        return self.filenames[0]

    @property
    def folder(self) -> Path:
        """Where the files are, and what is made of them may be put."""
        return self.paths[0].parent

    @property
    def content(self) -> dict[str, Any]:
        """Everything that the client sent, as JSON. The sha256 stands for the files."""
        content: dict[str, Any] = {
            "file": self.sha256,
            "filename": self.filename,
            "fields": self.fields,
        }
        if len(self.paths) > 1:
            content["files"] = [
                (name, path.stat().st_size)
                for name, path in zip(self.filenames, self.paths, strict=True)
            ]
        return content


async def body_chunks(request: Request, timeouts: BodyTimeouts) -> AsyncIterator[bytes]:
    """The pieces of a body as they arrive; the body must not have been read.

    Raises:
        ApiError: 408 `body_stalled` or `body_too_slow`.
        starlette.requests.ClientDisconnect: the client closed the connection.
    """
    now = asyncio.get_running_loop().time
    end = now() + timeouts.total
    stream = request.stream()
    while True:
        if now() >= end:
            message = f"The body has not ended after {timeouts.total:g} seconds."
            raise _timed_out("body_too_slow", message)
        try:
            async with asyncio.timeout_at(min(now() + timeouts.pause, end)):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            if now() >= end:
                continue
            message = f"Nothing more of the body came for {timeouts.pause:g} seconds."
            raise _timed_out("body_stalled", message) from error
        yield chunk


async def read_json(request: Request, timeouts: BodyTimeouts, *other_types: str) -> bytes:
    """A JSON body.

    Args:
        request: its body has not been read.
        timeouts: how long the body may take.
        other_types: media types that the route also accepts, for the error message.

    Raises:
        ApiError: 408 `body_stalled` or `body_too_slow`; 413 `too_large`; 415
            `unsupported_media_type`.
        starlette.requests.ClientDisconnect: the client closed the connection.
    """
    if _media_type(request) != _JSON:
        accepted = (_JSON, *other_types)
        raise ApiError(
            415,
            "unsupported_media_type",
            f"The body must be {' or '.join(accepted)}.",
            headers={"Accept-Post": ", ".join(accepted)},
        )
    body = bytearray()
    async for chunk in body_chunks(request, timeouts):
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise ApiError(413, "too_large", f"The body has more than {MAX_JSON_BYTES} bytes.")
    return bytes(body)


def parse(model: type[Model], text: str | bytes) -> Model:
    """Validate JSON text.

    Raises:
        ApiError: 400 `invalid_json`; 422 `validation_error`.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise validation_error(error) from error


async def receive_file(
    request: Request,
    path: Path,
    *,
    name: str | None,
    max_file_bytes: int,
    timeouts: BodyTimeouts,
) -> ReceivedFile:
    """Write a body that is one file to `path` while it arrives.

    Args:
        request: its body has not been read.
        path: where the file goes.
        name: the client's name for the file.
        max_file_bytes: a larger file is refused without reading the rest of it.
        timeouts: how long the body may take.

    Raises:
        ApiError: 408 `body_stalled` or `body_too_slow`; 413 `too_large`; 415
            `unsupported_media_type`.
        starlette.requests.ClientDisconnect: the client closed the connection.
        OSError: the disk is full.
    """
    suffix = SUFFIXES.get(_media_type(request))
    if suffix is None or request.headers.get("content-encoding", "").lower() not in _ENCODINGS:
        accepted = ", ".join(("multipart/form-data", *SUFFIXES))
        raise ApiError(
            415,
            "unsupported_media_type",
            f"The body must be one of {accepted}; Content-Encoding may be gzip or zstd.",
            headers={"Accept-Post": accepted},
        )
    if announced_bytes(request) > max_file_bytes:
        raise file_too_large(max_file_bytes)
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:

        def write(chunk: bytes) -> None:
            digest.update(chunk)
            file.write(chunk)

        async for chunk in body_chunks(request, timeouts):
            size += len(chunk)
            if size > max_file_bytes:  # Content-Length may be absent or wrong
                raise file_too_large(max_file_bytes)
            if chunk:
                await run_in_threadpool(write, chunk)
    return ReceivedFile(
        paths=(path,),
        filenames=(f"{name or 'dataset'}{suffix}",),
        bytes=size,
        sha256=digest.hexdigest(),
        fields={},
    )


def announced_bytes(request: Request) -> int:
    """The body's size by its Content-Length; 0 if the header is absent or no number."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


def file_too_large(limit: int) -> ApiError:
    """A 413: the file has more than `limit` bytes."""
    return ApiError(413, "too_large", f"The file has more than {limit} bytes.", param=FILE_FIELD)


def _timed_out(code: ServiceCode, detail: str) -> ApiError:
    return ApiError(408, code, detail, headers={"Connection": "close"})


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
