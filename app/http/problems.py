"""Errors as RFC 9457 problem+json, and the request id that ties an answer to the log.

Code in app.http raises `ApiError`, and the store raises `QuotaExceededError` and
`StorageUnavailableError`. The handlers here answer these, the framework's errors and unexpected
ones with one shape: `type, title, status, detail, code, request_id` and, where they apply, `param`
(the offending field), `errors` (all offending fields), `line` and `column` (of an uploaded file).
"""

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

from app.errors import DISK_FULL, StorageUnavailableError, kind_of
from app.http.schemas.problems import FieldError, Problem
from app.logs import log_fields
from app.store.quotas import QuotaExceededError
from td3engine.data.types import LogErrorCode

# All codes, so that the type checker refuses others. A test compares the table in docs/http-api.md.
# Codes are stable: none is removed, and none changes its meaning.
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
# Codes that only a job can fail with: a valid log may hold too little data for the job's filter.
_CODES_OF_JOBS = frozenset({"too_little_data"})
PROBLEM_CODES = frozenset([*get_args(ServiceCode), *get_args(LogErrorCode)]) - _CODES_OF_JOBS

logger = logging.getLogger(__name__)

PROBLEM_MEDIA_TYPE = "application/problem+json"
REQUEST_ID_HEADER = "x-request-id"
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_random = random.Random()  # noqa: S311 (request ids need to be unique, not secret)
_LONGEST_ERROR_LIST = 50
_OUTAGE_RETRY_SECONDS = 5
_QUOTA_RETRY_SECONDS = {"too_many_active_jobs": 30, "too_many_jobs": 600, "storage_full": 600}
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
        code: stable, for programs; explained in docs/http-api.md.
        detail: for people: what is wrong, and what would be right.
        param: the offending field of the request, as a dotted path.
        errors: all offending fields.
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
    """A 404: nothing of that kind has that id or name."""
    code = _CODES_OF_MISSING[kind]
    return ApiError(404, code, f"There is no {kind} {identifier[:100]!r}.")


def field_error(path: str, code: str, message: str) -> ApiError:
    """A 422 for one field of the request."""
    return _invalid_fields([FieldError(path=path, code=code, message=message)])


def validation_error(error: ValidationError, *, below: str = "") -> ApiError:
    """A 422 for the fields that pydantic refused.

    Args:
        error: pydantic's.
        below: path of the validated model within the request.
    """
    return _from_pydantic(error.errors(include_url=False, include_context=False), below=below)


def request_id_of(scope: Scope) -> str:
    """The id that `RequestIds` assigned to this request."""
    return str(scope["state"]["request_id"])


def problem_response(scope: Scope, error: ApiError) -> Response:
    """The error as an HTTP response."""
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
    # `json` escapes lone surrogates, which pydantic's own serialiser refuses.
    content = json.dumps(problem.model_dump(exclude_none=True))
    return Response(content, error.status, error.headers, PROBLEM_MEDIA_TYPE)


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error of `app` as a problem, and give each request an id."""

    async def quota_exceeded(request: Request, error: Exception) -> Response:
        assert isinstance(error, QuotaExceededError)
        headers = {"Retry-After": str(_QUOTA_RETRY_SECONDS[error.code])}
        return problem_response(
            request.scope, ApiError(429, error.code, error.detail, headers=headers)
        )

    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return problem_response(request.scope, error)

    async def framework_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return problem_response(request.scope, _from_framework(request, error))

    async def invalid_request(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_response(request.scope, _from_pydantic(error.errors()))

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(QuotaExceededError, quota_exceeded)
    app.add_exception_handler(HTTPException, framework_error)
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_middleware(RequestIds)


class RequestIds:
    """ASGI middleware: an id for each request, and a problem for each error without a handler.

    An unexpected error's traceback is logged once, with the request id. Clients get the id only.
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
        except StorageUnavailableError as error:
            logger.error("the database does not answer: %s: %s", kind_of(error), error)
            if started:
                raise
            await problem_response(scope, _outage())(scope, receive, send_with_id)
        except Exception as error:
            where = f"{scope['method']} {scope['path']}"
            logger.exception("request %s: %s failed", request_id, where)
            if started:  # too late for a problem: the server cuts the connection
                raise
            await problem_response(scope, _unexpected(error))(scope, receive, send_with_id)


def _unexpected(error: Exception) -> ApiError:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return _service_unavailable("disk_full", "The service's disk is full: try again later.")
    return ApiError(500, "internal_error", "Something went wrong on our side. It has been logged.")


def _outage() -> ApiError:
    return _service_unavailable(
        "database_unavailable", "The database does not answer in time: try again."
    )


def _service_unavailable(code: ServiceCode, detail: str) -> ApiError:
    return ApiError(503, code, detail, headers={"Retry-After": str(_OUTAGE_RETRY_SECONDS)})


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


def _from_pydantic(errors: Iterable[Any], *, below: str = "") -> ApiError:
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
    return _invalid_fields(fields)


def _invalid_fields(fields: list[FieldError]) -> ApiError:
    first = fields[0]
    more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
    detail = f"{first.path or 'The body'}: {first.message}{more}."
    return ApiError(422, "validation_error", detail, param=first.path or None, errors=fields)


def _path(location: tuple[str | int, ...], below: str) -> str:
    """The dotted path in the request: `("body", "config", "outer")` is `config.outer`."""
    parts = [str(part)[:100] for part in location]
    if not below and parts and parts[0] in {"body", "query", "path", "header"}:
        parts = parts[1:]
    return ".".join([below, *parts] if below else parts)
