"""Logging of every process of the service: one record per line, with fields of its context.

`log_fields` adds fields to every record of a block, whichever module writes it:

    with log_fields(job_id=job_id, attempt=1):
        logger.info("claimed")

The fields are in a context variable. Tasks and FastAPI's threads inherit them. Other threads do if
they are started with `contextvars.copy_context().run`.
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
# Characters that begin a new line or control a terminal: C0, DEL, C1, and Unicode's separators.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_fields: ContextVar[Mapping[str, object]] = ContextVar("td3_log_fields", default=_NO_FIELDS)


@contextmanager
def log_fields(**fields: object) -> Iterator[None]:
    """Add these fields to every record of the block, except for those that are None."""
    present = {name: value for name, value in fields.items() if value is not None}
    token = _fields.set({**_fields.get(), **present})
    try:
        yield
    finally:
        _fields.reset(token)


def current_request_id() -> str | None:
    """The id of the request that this context serves, if any."""
    request_id = _fields.get().get("request_id")
    return None if request_id is None else str(request_id)


class JsonFormatter(logging.Formatter):
    """A record as one JSON object on one line."""

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
    """A record for people: one line with the fields at its end, then a traceback.

    Text from clients cannot forge a record: control characters are escaped, and the lines of a
    traceback are indented.
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
    return _CONTROLS.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def set_up_logging(form: LogFormat) -> None:
    """Send every record of this process to stderr. For programs, not for libraries.

    Does nothing if logging is already configured, for example by a test.

    Args:
        form: `auto` means text if stderr is a terminal, else JSON.
    """
    if logging.getLogger().handlers:
        return
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(capture=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):  # they have handlers of their own
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"  # app.http.access_log replaces it
    logging.getLogger("httpx").setLevel(logging.WARNING)
