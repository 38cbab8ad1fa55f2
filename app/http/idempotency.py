"""`Idempotency-Key`: a POST that is sent again is answered again, and done once."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from fastapi import Request, Response
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.http.problems import ApiError, field_error
from app.http.route_path import route_path
from app.store import idempotency
from app.store.engine import Store
from app.store.idempotency import Answer, Asked, Hold

HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotency-Replayed"
_SANE_KEY = re.compile(r"[\x21-\x7e]{1,255}")
# A process that dies lets go of its keys after so long; one that works renews them in time.
_HOLD = timedelta(seconds=30)
_RENEW_SECONDS = 5.0
_IN_USE_RETRY_SECONDS = 2


@dataclass(frozen=True)
class Once:
    """How a request stands with its key, if it has one.

    Attributes:
        replay: the answer of the first time; there is nothing left to do.
    """

    replay: Response | None = None
    hold: Hold | None = None

    def keep(self, session: Session, answer: Answer) -> None:
        """Keep the answer with the key; call it in the transaction that makes what it tells of.

        Raises:
            ApiError: 409 `idempotency_key_in_use`: this process was silent for so long that the
                same request, sent again, took over.
        """
        if self.hold is not None and not idempotency.finish(session, self.hold, answer):
            raise _in_use()


@asynccontextmanager
async def once(
    request: Request, store: Store, tenant_id: str, content: Any, *, keep: timedelta
) -> AsyncIterator[Once]:
    """Serve a request at most once for its `Idempotency-Key`; without one: just serve it.

    Args:
        content: all of what the client asked for, as JSON; files by their sha256.
        keep: for how long the key is remembered.

    Raises:
        ApiError: 409 `idempotency_key_in_use`, 422 `idempotency_key_reused`.
    """
    key = request.headers.get(HEADER)
    if key is None:
        yield Once()
        return
    if not _SANE_KEY.fullmatch(key):
        message = "It must have 1 to 255 printable ASCII characters and no space"
        raise field_error(HEADER, "string_pattern_mismatch", message)
    asked = Asked(tenant_id, key, _digest([request.method, route_path(request.scope), content]))
    taken = await run_in_threadpool(_take, store, asked, keep)
    if isinstance(taken, Answer):
        yield Once(replay=respond(taken, replayed=True))
        return
    renewing = asyncio.create_task(_renew(store, taken))
    try:
        yield Once(hold=taken)
    except BaseException:
        # An answer that was kept stays kept: only a key without one is freed.
        await run_in_threadpool(_give_up, store, taken)
        raise
    finally:
        renewing.cancel()


def respond(answer: Answer, *, replayed: bool = False) -> Response:
    """The answer on the wire: the same bytes each time."""
    headers = {"Location": answer.location}
    if replayed:
        headers[REPLAYED_HEADER] = "true"
    return Response(answer.body, answer.status, headers, "application/json")


def _digest(asked: Any) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _take(store: Store, asked: Asked, keep: timedelta) -> Hold | Answer:
    with store.write() as session:
        taken = idempotency.take(session, asked, hold=_HOLD, keep=keep)
    if taken == "in_progress":
        raise _in_use()
    if taken == "other_request":
        raise ApiError(
            422,
            "idempotency_key_reused",
            "This Idempotency-Key was used for another request.",
            param=HEADER,
        )
    return taken


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
        except SQLAlchemyError:
            return  # the next one may work, and the request itself will tell what is wrong

    while True:
        await asyncio.sleep(_RENEW_SECONDS)
        await run_in_threadpool(renew)


def _give_up(store: Store, hold: Hold) -> None:
    try:
        with store.write() as session:
            idempotency.give_up(session, hold)
    except SQLAlchemyError:
        return  # it lapses by itself
