"""Downloads: preconditions, ranges and safe headers (RFC 9110, RFC 6266)."""

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
    """Bytes with a strong ETag.

    Attributes:
        filename: suggested to the client.
        media_type: of the bytes.
        etag: strong, with its quotes.
        size: in bytes; None if it is unknown before the bytes are made. Then there are no ranges.
        read: `read(start, stop)` gives the bytes from `start` to before `stop` (None: the end).
    """

    filename: str
    media_type: str
    etag: str
    size: int | None
    read: Callable[[int, int | None], Iterator[bytes]]


def respond(request: Request, download: Download) -> Response:
    """The answer to GET or HEAD: 200, 206 or 304.

    A single range of bytes is honoured. Any other Range header is ignored, as RFC 9110 permits, and
    the answer is the whole.

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
        return StreamingResponse(iter(()), headers=headers)  # adds no Content-Length
    span = None if size is None else _requested_range(request.headers, download.etag, size)
    if span is None:
        return StreamingResponse(download.read(0, None), headers=headers)
    start, stop = span
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    headers["Content-Length"] = str(stop - start)
    return StreamingResponse(download.read(start, stop), 206, headers)


def not_modified(request: Request, etag: str) -> bool:
    """Whether the client's `If-None-Match` names this (quoted) ETag."""
    condition = request.headers.get("if-none-match", "")
    return condition.strip() == "*" or etag in {tag for _, tag in _ETAG.findall(condition)}


def _matches(request: Request, etag: str) -> bool:
    """Whether there is no `If-Match`, or it names this strong ETag."""
    condition = request.headers.get("if-match")
    if condition is None or condition.strip() == "*":
        return True
    return etag in {tag for weak, tag in _ETAG.findall(condition) if not weak}


def _requested_range(headers: Mapping[str, str], etag: str, size: int) -> tuple[int, int] | None:
    """Positions of the first byte and after the last one; None for the whole."""
    condition = headers.get("if-range")
    if condition is not None and condition.strip() != etag:
        return None  # another version, a weak ETag, or a date, which this service never sends
    match = _ONE_RANGE.fullmatch(headers.get("range", ""))
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
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
    """Headers of the file. `nosniff` and `attachment` keep browsers from rendering it."""
    plain = _UNSAFE_IN_NAMES.sub("_", download.filename)
    encoded = quote(download.filename, safe="")
    return {
        "ETag": download.etag,
        "Cache-Control": "no-cache",
        "Accept-Ranges": "none" if download.size is None else "bytes",
        "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}",
        "X-Content-Type-Options": "nosniff",
    }
