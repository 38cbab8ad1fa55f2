"""Reads answers, and sends requests again whose answer was none."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from td3engine.client.wire import Problem, ServiceError, UnexpectedAnswerError

PAUSES = (0.2, 5.0)  # first and longest pause
_SEND_TRIES = 5
_BUSY = frozenset({429, 502, 503, 504})  # the same request may be answered later
_IN_USE = "idempotency_key_in_use"
_LONGEST_RETRY_AFTER_SECONDS = 60

Model = TypeVar("Model", bound=BaseModel)


class Patience:
    """Whether a failed request is sent again, and when.

    Args:
        tries: so many failures in a row are borne.
    """

    def __init__(self, tries: int) -> None:
        self._tries = tries
        self._failures = 0

    def pause_after(
        self, error: httpx.TransportError | ServiceError, deadline: float | None = None
    ) -> None:
        """Wait before the next try, but not beyond the deadline (of the monotonic clock).

        Raises:
            httpx.TransportError, ServiceError: `error`, where another try is of no use.
        """
        first, longest = PAUSES
        pause = min(first * 2**self._failures, longest)
        if isinstance(error, ServiceError):
            in_use = error.problem.code == _IN_USE  # an earlier try is being served: it will end
            if not in_use and (error.problem.status not in _BUSY or self._failures >= self._tries):
                raise error
            pause = max(pause, min(error.retry_after, _LONGEST_RETRY_AFTER_SECONDS))
        elif self._failures >= self._tries:
            raise error
        if deadline is not None:
            pause = max(0.0, min(pause, deadline - time.monotonic()))
        self._failures += 1
        time.sleep(pause)


def patiently(send: Callable[[], httpx.Response]) -> httpx.Response:
    """The good answer to a request that may arrive twice, sent again while that may help.

    Raises:
        ServiceError: the service refused the request, or was busy for too long.
        httpx.TransportError: it could not be reached.
    """
    patience = Patience(_SEND_TRIES)
    while True:
        try:
            return check(send())
        except (httpx.TransportError, ServiceError) as error:
            patience.pause_after(error)


def read(model: type[Model], answer: httpx.Response) -> Model:
    """What a good answer holds.

    Raises:
        ServiceError: the service refused the request.
        UnexpectedAnswerError: the answer is not the service's.
    """
    try:
        return model.model_validate(read_json(answer))
    except ValidationError as error:
        raise _unexpected(answer) from error


def read_json(answer: httpx.Response) -> Any:
    """The JSON of a good answer; raises as `read`."""
    require(check(answer), "application/json")
    try:
        return answer.json()
    except ValueError as error:
        raise _unexpected(answer) from error


def require(answer: httpx.Response, media_type: str) -> None:
    """Check what kind of answer it is.

    Raises:
        UnexpectedAnswerError: another kind.
    """
    if _media_type(answer) != media_type:
        answer.read()
        raise _unexpected(answer)


def check(answer: httpx.Response) -> httpx.Response:
    """The answer, unless it is an error or leads elsewhere; raises as `read`."""
    if answer.is_success:
        return answer
    answer.read()
    try:
        problem = Problem.model_validate_json(answer.content)
    except ValidationError as error:
        raise _unexpected(answer) from error
    raise ServiceError(problem, _retry_after(answer))


def _unexpected(answer: httpx.Response) -> UnexpectedAnswerError:
    """Whose answer it is and what it says, as far as that can be told."""
    said = f"{answer.status_code} {answer.reason_phrase}"
    server = answer.headers.get("server")
    who = f"{server} answers" if server else "something answers"
    kind = _media_type(answer) or "no media type"
    leads = f", which leads to {answer.headers['location']}" if answer.has_redirect_location else ""
    detail = f"{who} in place of the service: {said}, {kind}{leads}"
    problem = Problem(
        status=answer.status_code, title=answer.reason_phrase, detail=detail, code="unexpected"
    )
    return UnexpectedAnswerError(problem, _retry_after(answer))


def _retry_after(answer: httpx.Response) -> float:
    seconds = answer.headers.get("retry-after", "")
    return float(seconds) if seconds.isdecimal() else 0.0


def _media_type(answer: httpx.Response) -> str:
    return str(answer.headers.get("content-type", "")).partition(";")[0].strip().lower()
