"""Every error as RFC 9457 problem+json, and the request id that ties it to the log.

Code anywhere below `app` raises `ApiError`; the handlers here turn it, and whatever the framework
raises, into one shape: `type, title, status, detail, code, request_id`, and where they make sense
`param` (the offending field), `errors` (all offending fields), `line` and `column` (of a file).
"""

import errno
import http
import json
import logging
import random
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.schemas.problems import FieldError, Problem
from app.logs import log_fields
from app.store.engine import UNAVAILABLE
from td3engine.interactions import LogErrorCode

# Every code there is, so that the type checker refuses an unregistered one; a test holds the table
# in docs/api.md against it. A code never changes its meaning, and none is taken away.
ServiceCode = Literal[
    "artifact_not_found",
    "bad_multipart",
    "bad_request",
    "body_stalled",
    "body_too_slow",
    "database_unavailable",
    "dataset_deleted",
    "dataset_in_use",
    "dataset_not_found",
    "disk_full",
    "http_error",
    "idempotency_key_in_use",
    "idempotency_key_reused",
    "insufficient_scope",
    "internal_error",
    "invalid_json",
    "job_is_over",
    "job_not_found",
    "job_not_over",
    "job_not_succeeded",
    "key_expired",
    "key_invalid",
    "key_not_found",
    "key_required",
    "key_revoked",
    "method_not_allowed",
    "not_found",
    "precondition_failed",
    "range_not_satisfiable",
    "rate_limited",
    "storage_full",
    "too_large",
    "too_many_active_jobs",
    "too_many_jobs",
    "unsupported_media_type",
    "validation_error",
]
ProblemCode = ServiceCode | LogErrorCode
# What only a job can fail with: a log that is fine may still hold too little for its filter.
_CODES_OF_JOBS = frozenset({"too_little_data"})
PROBLEM_CODES = frozenset([*get_args(ServiceCode), *get_args(LogErrorCode)]) - _CODES_OF_JOBS

logger = logging.getLogger(__name__)

PROBLEM_MEDIA_TYPE = "application/problem+json"
REQUEST_ID_HEADER = "x-request-id"
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_random = random.Random()  # noqa: S311 (request ids have to be unique, and may be guessed)
_LONGEST_ERROR_LIST = 50
_RETRY_AFTER_SECONDS = "5"
# No room at all, for this user, or in one file.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CODES_OF_FRAMEWORK_ERRORS: dict[int, ServiceCode] = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
}


class ApiError(Exception):
    """An error that a client should see.

    Args:
        status: HTTP status.
        code: stable, for programs; explained in docs/api.md.
        detail: for people; says what is wrong and what would be right.
        param: the request's field at fault, as a dotted path.
        errors: all fields at fault.
        headers: headers of the answer.
        line, column: where in the uploaded file.
    """

    def __init__(
        self,
        status: int,
        code: ProblemCode,
        detail: str,
        *,
        param: str | None = None,
        errors: list[FieldError] | None = None,
        headers: Mapping[str, str] | None = None,
        line: int | None = None,
        column: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.param = param
        self.errors = errors
        self.headers = headers
        self.line = line
        self.column = column


_CODES_OF_MISSING: dict[str, ServiceCode] = {
    "artifact": "artifact_not_found",
    "dataset": "dataset_not_found",
    "job": "job_not_found",
    "key": "key_not_found",
}


def not_found(kind: Literal["artifact", "dataset", "job", "key"], identifier: str) -> ApiError:
    """Nothing of that kind has that id or name."""
    code = _CODES_OF_MISSING[kind]
    return ApiError(404, code, f"There is no {kind} {identifier[:100]!r}.")


def field_error(path: str, code: str, message: str) -> ApiError:
    """One field of the request is wrong."""
    return _refused([FieldError(path=path, code=code, message=message)])


def validation_error(error: ValidationError, *, below: str = "") -> ApiError:
    """A 422 that points at the fields which pydantic refused; `below` is the path of the model."""
    return _fields_refused(error.errors(include_url=False, include_context=False), below=below)


def request_id_of(scope: Scope) -> str:
    """The id that `RequestIds` gave this request."""
    return str(scope["state"]["request_id"])


def problem_response(scope: Scope, error: ApiError) -> Response:
    """The error on the wire."""
    problem = Problem(
        type=f"urn:td3:problem:{error.code}",
        title=http.HTTPStatus(error.status).phrase,
        status=error.status,
        detail=error.detail,
        code=error.code,
        request_id=request_id_of(scope),
        param=error.param,
        errors=error.errors,
        line=error.line,
        column=error.column,
    )
    # Serialised by hand: a problem must reach the client even where its text has lone surrogates.
    content = json.dumps(problem.model_dump(exclude_none=True))
    return Response(content, error.status, error.headers, PROBLEM_MEDIA_TYPE)


def install_error_handlers(app: FastAPI) -> None:
    """Have every error of `app` answered as a problem; adds the request ids too."""

    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return problem_response(request.scope, error)

    async def framework_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return problem_response(request.scope, _from_framework(request, error))

    async def invalid_request(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_response(request.scope, _fields_refused(error.errors()))

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, framework_error)
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_middleware(RequestIds)


class RequestIds:
    """ASGI middleware: a request id for each request, and a problem for each unexpected error.

    It catches what no handler did, so that the traceback is logged once, with the id that the
    client was given, and nothing of it leaks.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _incoming_request_id(scope) or f"{_random.getrandbits(128):032x}"
        scope.setdefault("state", {})["request_id"] = request_id
        with log_fields(request_id=request_id):
            await self._serve(scope, receive, send, request_id)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            logger.info("the client went away")
        except UNAVAILABLE as away:
            # The class only: the text may be long, and hold what the client sent.
            logger.error("the database does not answer: %s", type(away).__name__)
            if started:
                raise
            unavailable = _try_again(
                "database_unavailable", "The database does not answer in time: try again."
            )
            await problem_response(scope, unavailable)(scope, receive, send_with_id)
        except Exception as error:
            where = f"{scope['method']} {scope['path']}"
            logger.exception("request %s: %s failed", request_id, where)
            if started:  # too late for a problem: cutting the connection is all that is left to say
                raise
            await problem_response(scope, _unexpected(error))(scope, receive, send_with_id)


def _unexpected(error: Exception) -> ApiError:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return _try_again("disk_full", "The service's disk is full: try again later.")
    return ApiError(500, "internal_error", "Something went wrong on our side. It has been logged.")


def _try_again(code: ServiceCode, detail: str) -> ApiError:
    return ApiError(503, code, detail, headers={"Retry-After": _RETRY_AFTER_SECONDS})


def _incoming_request_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == REQUEST_ID_HEADER.encode():
            text = value.decode("latin-1")
            return text if _SANE_REQUEST_ID.fullmatch(text) else None
    return None


def _from_framework(request: Request, error: HTTPException) -> ApiError:
    code = _CODES_OF_FRAMEWORK_ERRORS.get(error.status_code, "http_error")
    detail = error.detail
    if error.status_code == 404:
        detail = f"There is nothing at {request.url.path[:200]}."
    elif error.status_code == 405:
        detail = f"{request.method} is not possible at {request.url.path[:200]}."
    return ApiError(error.status_code, code, detail, headers=error.headers)


def _fields_refused(errors: Iterable[Any], *, below: str = "") -> ApiError:
    errors = list(errors)
    if errors and errors[0]["type"] == "json_invalid":
        return ApiError(400, "invalid_json", f"The body is not valid JSON: {errors[0]['msg']}.")
    fields = [
        FieldError(
            path=_path(error["loc"], below),
            code=error["type"],
            message=error["msg"].removeprefix("Value error, "),
        )
        for error in errors[:_LONGEST_ERROR_LIST]
    ]
    return _refused(fields)


def _refused(fields: list[FieldError]) -> ApiError:
    first = fields[0]
    more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
    detail = f"{first.path or 'The body'}: {first.message}{more}."
    return ApiError(422, "validation_error", detail, param=first.path or None, errors=fields)


def _path(location: tuple[str | int, ...], below: str) -> str:
    """`("body", "config", "outer")` as `config.outer`: where in the request, not in our code."""
    parts = [str(part)[:100] for part in location]
    if not below and parts and parts[0] in {"body", "query", "path", "header"}:
        parts = parts[1:]
    return ".".join([below, *parts] if below else parts)
