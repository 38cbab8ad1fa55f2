"""`Idempotency-Key`: a POST that is sent again is done once and gets the same answer."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from fastapi import Header, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.http.auth import Caller
from app.http.context import Context
from app.http.openapi import problem_responses
from app.http.problems import ApiError, field_error
from app.http.route_path import route_path
from app.store import idempotency
from app.store.engine import STORE_ERRORS, Store
from app.store.idempotency import Answer, Hold, KeyedRequest

HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotency-Replayed"
_VALID_KEY = re.compile(r"[\x21-\x7e]{1,255}")
# The keys of a process that died become free after this long; a live process renews them in time.
_HOLD = timedelta(seconds=30)
_RENEW_SECONDS = 5.0
_IN_USE_RETRY_SECONDS = 2

# For the OpenAPI document; `serve_once` reads the header itself.
IdempotencyKeyHeader = Annotated[
    str | None,
    Header(
        alias=HEADER,
        description="Any text of yours, 1 to 255 printable ASCII characters. The same request "
        "under the same key is done once and answered alike, with `Idempotency-Replayed: true`.",
        examples=["5b8f6a0e-2f0c-4d0b-9d57-3f1f7c0f8d55"],
    ),
]
IDEMPOTENCY_PROBLEMS = problem_responses(
    _409="`idempotency_key_in_use`: its request is being served, see `Retry-After`.",
)


@dataclass(frozen=True)
class KeyState:
    """The state of a request's idempotency key; both fields are None if it has no key.

    Attributes:
        replay: the answer to an earlier, equal request. If set, nothing is left to do.
        hold: the right to serve the request under its key.
    """

    replay: Response | None = None
    hold: Hold | None = None

    def save_answer(self, session: Session, answer: Answer) -> None:
        """Store the answer under the key, in the transaction that makes what it describes.

        Raises:
            ApiError: 409 `idempotency_key_in_use`: this process stalled for so long that a repeated
                request took the key over.
        """
        if self.hold is not None and not idempotency.finish(session, self.hold, answer):
            raise _in_use()


@asynccontextmanager
async def serve_once(
    request: Request, context: Context, caller: Caller, content: Any
) -> AsyncIterator[KeyState]:
    """Serve a request at most once per `Idempotency-Key`; without the header, just serve it.

    Args:
        request: its headers have the key.
        context: the service.
        caller: keys are separate for each tenant.
        content: everything that the client sent, as JSON; files by their sha256.

    Raises:
        ApiError: 409 `idempotency_key_in_use`, 422 `idempotency_key_reused`, 422
            `validation_error`: the key itself is malformed.
    """
    key = request.headers.get(HEADER)
    if key is None:
        yield KeyState()
        return
    if not _VALID_KEY.fullmatch(key):
        message = "It must have 1 to 255 printable ASCII characters and no space"
        raise field_error(HEADER, "string_pattern_mismatch", message)
    sha256 = _digest([request.method, route_path(request.scope), content])
    keyed = KeyedRequest(caller.tenant_id, key, sha256)
    keep = timedelta(seconds=context.settings.idempotency_seconds)
    hold = await run_in_threadpool(_take, context.store, keyed, keep)
    if isinstance(hold, Answer):
        yield KeyState(replay=to_response(hold, replayed=True))
        return
    renewing = asyncio.create_task(_renew(context.store, hold))
    try:
        yield KeyState(hold=hold)
    except BaseException:
        # A key with a saved answer keeps it: this frees only a key without one.
        await run_in_threadpool(_give_up, context.store, hold)
        raise
    finally:
        renewing.cancel()


def to_response(answer: Answer, *, replayed: bool = False) -> Response:
    """The answer as an HTTP response: the same bytes each time."""
    headers = {"Location": answer.location}
    if replayed:
        headers[REPLAYED_HEADER] = "true"
    return Response(answer.body, answer.status, headers, "application/json")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _take(store: Store, request: KeyedRequest, keep: timedelta) -> Hold | Answer:
    with store.write() as session:
        outcome = idempotency.take(session, request, hold=_HOLD, keep=keep)
    if outcome == "in_progress":
        raise _in_use()
    if outcome == "other_request":
        raise ApiError(
            422,
            "idempotency_key_reused",
            "This Idempotency-Key was used for another request.",
            param=HEADER,
        )
    return outcome


def _in_use() -> ApiError:
    return ApiError(
        409,
        "idempotency_key_in_use",
        "The request of this Idempotency-Key is being served at this moment: ask again.",
        headers={"Retry-After": str(_IN_USE_RETRY_SECONDS)},
    )


async def _renew(store: Store, hold: Hold) -> None:
    def renew() -> None:
        try:
            with store.write() as session:
                idempotency.renew(session, hold, hold_for=_HOLD)
        except STORE_ERRORS:
            return  # the next renewal may work, and the request itself will report the outage

    while True:
        await asyncio.sleep(_RENEW_SECONDS)
        await run_in_threadpool(renew)


def _give_up(store: Store, hold: Hold) -> None:
    try:
        with store.write() as session:
            idempotency.give_up(session, hold)
    except STORE_ERRORS:
        return  # the hold lapses by itself
