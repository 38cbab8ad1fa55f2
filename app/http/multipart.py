"""Receives a multipart form whose file is written straight to disk.

Starlette's form parser spools files of any size to the system's temporary folder, often memory, and
checks sizes afterwards. Here the file is hashed and counted while it arrives. So memory use is
constant, and a body that is too large is refused as soon as that is known. A form may have several
files: together they are one log.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool

from app.http.problems import ApiError, field_error
from app.http.request_body import (
    FILE_FIELD,
    BodyTimeouts,
    ReceivedFile,
    announced_bytes,
    body_chunks,
    file_too_large,
)

MAX_FILES = 1000
MAX_FIELD_BYTES = 256 * 1024
# Allowance for everything but the file: a few fields, boundaries and part headers.
BODY_OVERHEAD_BYTES = 1024 * 1024
_WRITE_BYTES = 1024 * 1024


@dataclass
class _Part:
    name: str = ""
    is_file: bool = False
    data: bytearray = field(default_factory=bytearray)


class _Collector:
    """The parser's callbacks: collects text fields, and file bytes until they are written."""

    def __init__(self, allowed: frozenset[str], max_file_bytes: int) -> None:
        self.allowed = allowed
        self.max_file_bytes = max_file_bytes
        self.fields: dict[str, str] = {}
        self.filenames: list[str] = []
        self.file_bytes = 0
        self.file_complete = False
        self.finished = False
        # What is to be written: the number of the file, and some of its bytes.
        self.unwritten: list[tuple[int, bytearray]] = []
        self.unwritten_bytes = 0
        self._part = _Part()
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, str] = {}

    def on_part_begin(self) -> None:
        self._part = _Part()
        self._headers = {}

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        value = self._header_value.decode("latin-1")
        self._headers[bytes(self._header_name.lower())] = value
        self._header_name.clear()
        self._header_value.clear()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", ""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in {FILE_FIELD, *self.allowed}:
            raise field_error(name[:100], "extra_forbidden", "There is no such form field")
        if name in self.fields:
            raise field_error(name, "duplicate", "The form field is there twice")
        is_file = name == FILE_FIELD
        if is_file:
            if len(self.filenames) == MAX_FILES:
                raise field_error(name, "too_many", f"There are more than {MAX_FILES} files")
            self.filenames.append(options.get(b"filename", b"").decode("utf-8", "replace"))
            self.unwritten.append((len(self.filenames) - 1, bytearray()))
        self._part = _Part(name, is_file)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.is_file:
            self.file_bytes += end - start
            if self.file_bytes > self.max_file_bytes:
                raise file_too_large(self.max_file_bytes)
            if not self.unwritten:
                self.unwritten.append((len(self.filenames) - 1, bytearray()))
            self.unwritten[-1][1].extend(data[start:end])
            self.unwritten_bytes += end - start
            return
        if len(self._part.data) + end - start > MAX_FIELD_BYTES:
            raise ApiError(
                413,
                "too_large",
                f"Form field {self._part.name} has more than {MAX_FIELD_BYTES} bytes.",
                param=self._part.name,
            )
        self._part.data += data[start:end]

    def on_part_end(self) -> None:
        if self._part.is_file:
            self.file_complete = True
            return
        try:
            self.fields[self._part.name] = self._part.data.decode()
        except UnicodeDecodeError as error:
            raise field_error(self._part.name, "bad_encoding", "The field is not UTF-8") from error

    def on_end(self) -> None:
        self.finished = True


async def receive_form(
    request: Request,
    path: Path,
    *,
    fields: frozenset[str],
    max_file_bytes: int,
    timeouts: BodyTimeouts,
) -> ReceivedFile:
    """Write the form's files while they arrive, and return the text fields with them.

    Args:
        request: its body has not been read.
        path: where the file goes; further files go beside it.
        fields: names of the text fields that are allowed besides `file`.
        max_file_bytes: more bytes of files are refused without reading the rest of them.
        timeouts: how long the body may take.

    Raises:
        ApiError: 400 `bad_multipart`; 408 `body_stalled` or `body_too_slow`; 413 `too_large`; 422
            for an unknown, missing or duplicate field.
        starlette.requests.ClientDisconnect: the client closed the connection.
        OSError: the disk is full.
    """
    max_body_bytes = max_file_bytes + BODY_OVERHEAD_BYTES
    if announced_bytes(request) > max_body_bytes:
        raise file_too_large(max_file_bytes)
    collector = _Collector(fields, max_file_bytes)
    parser = _make_parser(request, collector)
    digest = hashlib.sha256()
    received = 0

    def write() -> None:
        for number, some in collector.unwritten:
            digest.update(some)
            with _path_of(path, number).open("ab") as file:
                file.write(some)
        collector.unwritten.clear()
        collector.unwritten_bytes = 0

    async for chunk in body_chunks(request, timeouts):
        received += len(chunk)
        if received > max_body_bytes:  # Content-Length may be absent or wrong
            raise file_too_large(max_file_bytes)
        try:
            parser.write(chunk)
        except FormParserError as error:
            raise _bad_multipart(str(error)) from error
        if collector.unwritten_bytes >= _WRITE_BYTES:
            await run_in_threadpool(write)
    await run_in_threadpool(write)
    if not collector.finished:
        raise _bad_multipart("The body ends before the form does.")
    if not collector.file_complete:
        raise field_error(FILE_FIELD, "missing", "The form has no file")
    return ReceivedFile(
        paths=tuple(_path_of(path, number) for number in range(len(collector.filenames))),
        filenames=tuple(map(_printable, collector.filenames)),
        bytes=collector.file_bytes,
        sha256=digest.hexdigest(),
        fields=collector.fields,
    )


def _path_of(path: Path, number: int) -> Path:
    """Where a file of a form goes, counted from 0."""
    return path if not number else path.with_name(f"{path.name}-{number}")


def is_multipart(request: Request) -> bool:
    """Whether the body is a multipart form."""
    content_type, _ = parse_options_header(request.headers.get("content-type"))
    return content_type == b"multipart/form-data"


def _make_parser(request: Request, collector: _Collector) -> MultipartParser:
    _, options = parse_options_header(request.headers.get("content-type"))
    if not is_multipart(request) or b"boundary" not in options:
        raise ApiError(
            415,
            "unsupported_media_type",
            "The body must be multipart/form-data with a boundary.",
            headers={"Accept-Post": "multipart/form-data"},
        )
    callbacks = {
        "on_part_begin": collector.on_part_begin,
        "on_header_field": collector.on_header_field,
        "on_header_value": collector.on_header_value,
        "on_header_end": collector.on_header_end,
        "on_headers_finished": collector.on_headers_finished,
        "on_part_data": collector.on_part_data,
        "on_part_end": collector.on_part_end,
        "on_end": collector.on_end,
    }
    try:
        return MultipartParser(options[b"boundary"], callbacks)  # type: ignore[arg-type]
    except FormParserError as error:
        raise _bad_multipart(str(error)) from error


def _bad_multipart(detail: str) -> ApiError:
    return ApiError(400, "bad_multipart", f"The multipart form cannot be read: {detail}")


def _printable(filename: str) -> str:
    """The last component of a file name, without unprintable characters."""
    last = filename.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(character for character in last if character.isprintable())[-150:]
