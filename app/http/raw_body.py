"""Receive a file that is the whole body, straight to disk; see app/http/multipart.py for forms."""

import hashlib
from pathlib import Path

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from app.http.body import Patience, body_chunks
from app.http.multipart import Form, file_too_large
from app.http.problems import ApiError

# What a file of this type is called, which tells the reader its format; for the others it looks.
SUFFIXES = {
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "text/plain": "",
    "application/vnd.apache.parquet": ".parquet",
    "application/gzip": "",
    "application/zstd": "",
    "application/octet-stream": "",
}
_ENCODINGS = ("", "identity", "gzip", "zstd")  # the reader knows them by their first bytes


async def receive_raw(
    request: Request,
    path: Path,
    *,
    name: str | None,
    max_file_bytes: int,
    patience: Patience,
) -> Form:
    """Write the body to `path` while it arrives.

    Args:
        request: its body has not been read.
        path: where the file goes.
        name: what the client calls it.
        max_file_bytes: a larger file is refused without reading the rest of it.
        patience: how long the body may take.

    Raises:
        ApiError: 408 `body_stalled` or `body_too_slow`; 413 `too_large`; 415
            `unsupported_media_type`.
        starlette.requests.ClientDisconnect: the client went away.
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
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_file_bytes:
        raise file_too_large(max_file_bytes)
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:

        def write(chunk: bytes) -> None:
            digest.update(chunk)
            file.write(chunk)

        async for chunk in body_chunks(request, patience):
            size += len(chunk)
            if size > max_file_bytes:  # whatever was announced
                raise file_too_large(max_file_bytes)
            if chunk:
                await run_in_threadpool(write, chunk)
    return Form(
        path=path,
        filename=f"{name or 'dataset'}{suffix}",
        bytes=size,
        sha256=digest.hexdigest(),
        fields={},
    )


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
