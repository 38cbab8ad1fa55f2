"""Logging of every process of the service: one record a line, with the ids of what it is about.

Code says once what it is working on, and every record of the block carries it, whichever module
writes it:

    with log_fields(job_id=job_id, attempt=1):
        logger.info("claimed")

The fields live in a context variable: tasks and FastAPI's threads inherit them, a thread of our own
does if it is started with `contextvars.copy_context().run`.
"""

import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Literal

LogFormat = Literal["auto", "json", "text"]
_NO_FIELDS: Mapping[str, object] = MappingProxyType({})
_SECONDS = "%Y-%m-%dT%H:%M:%S"
_to_json = json.JSONEncoder(default=str).encode
# What begins a new line, or has a terminal do something: C0, DEL, C1, and Unicode's separators.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_fields: ContextVar[Mapping[str, object]] = ContextVar("td3_log_fields", default=_NO_FIELDS)


@contextmanager
def log_fields(**fields: object) -> Iterator[None]:
    """Put these fields on every record of the block; None leaves one out."""
    given = {name: value for name, value in fields.items() if value is not None}
    token = _fields.set({**_fields.get(), **given})
    try:
        yield
    finally:
        _fields.reset(token)


def current_request_id() -> str | None:
    """Of the request that is being served here."""
    found = _fields.get().get("request_id")
    return None if found is None else str(found)


class JsonFormatter(logging.Formatter):
    """A record as one JSON object on one line, whatever is in it."""

    def format(self, record: logging.LogRecord) -> str:
        """`time`, `level`, `logger`, `message`, the fields, and `exception` (a traceback)."""
        entry: dict[str, object] = {
            "time": f"{time.strftime(_SECONDS, time.gmtime(record.created))}"
            f".{int(record.msecs):03}+00:00",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields.get(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return _to_json(entry)


class TextFormatter(logging.Formatter):
    """The same for people: a line, the fields at its end, and a traceback below it.

    What clients send cannot look like a record of its own: control characters are shown escaped,
    and the lines of a traceback, which may quote anything, are indented.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record with its fields as `[job_id=... attempt=1]`."""
        fields = " ".join(f"{name}={value}" for name, value in _fields.get().items())
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {record.getMessage()}"
        lines = [f"{line} [{fields}]" if fields else line]
        if record.exc_info:
            lines += [f"  {text}" for text in self.formatException(record.exc_info).split("\n")]
        return "\n".join(map(_without_controls, lines))


def _without_controls(text: str) -> str:
    return _CONTROLS.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def set_up_logging(form: LogFormat) -> None:
    """Send every record of this process to stderr; `auto`: as text if that is a terminal.

    For programs. Where logging has been set up already, by a test for example, it stays as it is.
    """
    if logging.getLogger().handlers:
        return
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(capture=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):  # have handlers of their own
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"  # app.http.access_log knows more
    logging.getLogger("httpx").setLevel(logging.WARNING)
