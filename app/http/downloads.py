"""Answers that are bytes: preconditions, ranges and safe headers (RFC 9110, RFC 6266)."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from app.http.problems import ApiError

_ETAG = re.compile(r'(W/)?("[^"]*")')
_ONE_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,30})-([0-9]{0,30})[ \t]*", re.IGNORECASE)
_UNSAFE_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class Download:
    """Bytes that one strong ETag stands for.

    Attributes:
        filename: what the client should call it.
        etag: strong, with its quotes.
        size: how many bytes; None where that is not known before they are made: without ranges.
        read: gives the bytes from a first position to before a second.
    """

    filename: str
    media_type: str
    etag: str
    size: int | None
    read: Callable[[int, int | None], Iterator[bytes]]


def respond(request: Request, download: Download) -> Response:
    """The answer to GET or HEAD: 200, 206 or 304.

    One range is honoured; several in one header are ignored, which gives the whole (RFC 9110 leaves
    that to the server), and so does a header that is malformed or of another unit than bytes.

    Raises:
        ApiError: 412 `precondition_failed`; 416 `range_not_satisfiable`.
    """
    size = download.size
    headers = _headers(download)
    if not _matches(request, download.etag):
        raise ApiError(
            412, "precondition_failed", f"It is not what If-Match names, but {download.etag}."
        )
    if not_modified(request, download.etag):
        return Response(status_code=304, headers=headers)
    headers["Content-Type"] = download.media_type
    if size is not None:
        headers["Content-Length"] = str(size)
    if request.method == "HEAD":
        return StreamingResponse(iter(()), headers=headers)  # claims no length where none is known
    wanted = None if size is None else _wanted_range(request.headers, download.etag, size)
    if wanted is None:
        return StreamingResponse(download.read(0, None), headers=headers)
    start, stop = wanted
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    headers["Content-Length"] = str(stop - start)
    return StreamingResponse(download.read(start, stop), 206, headers)


def not_modified(request: Request, etag: str) -> bool:
    """Whether the client's `If-None-Match` names this (quoted) ETag."""
    given = request.headers.get("if-none-match", "")
    return given.strip() == "*" or etag in {tag for _, tag in _ETAG.findall(given)}


def _matches(request: Request, etag: str) -> bool:
    """Whether there is no `If-Match`, or one that names this strong ETag."""
    given = request.headers.get("if-match")
    if given is None or given.strip() == "*":
        return True
    return etag in {tag for weak, tag in _ETAG.findall(given) if not weak}


def _wanted_range(headers: Mapping[str, str], etag: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None for the whole."""
    condition = headers.get("if-range")
    if condition is not None and condition.strip() != etag:
        return None  # another version, a weak ETag, or a date, which we never gave
    found = _ONE_RANGE.fullmatch(headers.get("range", ""))
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        start, stop = max(size - int(last), 0), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= size:
        raise ApiError(
            416,
            "range_not_satisfiable",
            f"The file has {size} bytes: none of them is in the range.",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, stop


def _headers(download: Download) -> dict[str, str]:
    """A download under this name, never shown as a page of ours (`nosniff`, attachment)."""
    plain = _UNSAFE_IN_NAMES.sub("_", download.filename)
    encoded = quote(download.filename, safe="")
    return {
        "ETag": download.etag,
        "Cache-Control": "no-cache",
        "Accept-Ranges": "none" if download.size is None else "bytes",
        "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}",
        "X-Content-Type-Options": "nosniff",
    }
