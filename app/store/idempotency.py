"""Idempotency keys in SQL: who may serve the request of a key, and the answer it got.

A key is held while its request is served. The answer is stored in the transaction that makes what
the request asked for, so a crash leaves either nothing or the thing with its answer. A hold that is
not renewed lapses, and an equal request may take it over. One INSERT ... ON CONFLICT decides which
request is first.
"""

import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from sqlalchemy import ColumnElement, and_, delete, or_, select, update
from sqlalchemy.orm import Session

from app.store.engine import database_now, insert_into
from app.store.models import IdempotencyKey


@dataclass(frozen=True)
class KeyedRequest:
    """A request with its idempotency key; `sha256` is the digest of its content."""

    tenant_id: str
    key: str
    sha256: str


@dataclass(frozen=True)
class Hold:
    """The right to serve the request of a key."""

    request: KeyedRequest
    token: str


@dataclass(frozen=True)
class Answer:
    """The answer to a request, to be sent again."""

    status: int
    location: str
    body: str


def take(
    session: Session, request: KeyedRequest, *, hold: timedelta, keep: timedelta
) -> Hold | Answer | Literal["in_progress", "other_request"]:
    """Take a key that is free.

    Args:
        session: a writing one.
        request: whose key it is.
        hold: how long the key is held unless `renew` is called.
        keep: how long the key and its answer are kept.

    Returns:
        The hold; or, if the key is not free: the answer to the equal request before, `in_progress`
        while that one is being served, or `other_request` if the key belongs to a different one.
    """
    now = database_now(session)
    lapsed = and_(IdempotencyKey.status.is_(None), IdempotencyKey.held_until < now)
    free = or_(
        IdempotencyKey.expires_at < now,
        and_(lapsed, IdempotencyKey.request_sha256 == request.sha256),
    )
    values = {
        "request_sha256": request.sha256,
        "token": secrets.token_hex(16),
        "held_until": now + hold,
        "expires_at": now + keep,
        "status": None,
        "location": None,
        "body": None,
    }
    statement = insert_into(session, IdempotencyKey).values(
        tenant_id=request.tenant_id, key=request.key, **values
    )
    statement = statement.on_conflict_do_update(
        index_elements=[IdempotencyKey.tenant_id, IdempotencyKey.key], set_=values, where=free
    )
    token = session.scalar(statement.returning(IdempotencyKey.token))
    if token is not None:
        return Hold(request, token)
    row = session.scalar(select(IdempotencyKey).where(_matches(request)))
    if row is None:
        return "in_progress"  # given up just now: the next try gets the key
    if row.request_sha256 != request.sha256:
        return "other_request"
    if row.status is None or row.location is None or row.body is None:
        return "in_progress"
    return Answer(row.status, row.location, row.body)


def renew(session: Session, hold: Hold, *, hold_for: timedelta) -> None:
    """Extend the hold. Does nothing if another request has taken the key over."""
    until = database_now(session) + hold_for
    session.execute(update(IdempotencyKey).where(_held(hold)).values(held_until=until))


def finish(session: Session, hold: Hold, answer: Answer) -> bool:
    """Store the answer, in the transaction that makes what it describes.

    Returns:
        False if the hold lapsed and another request took the key over. The caller then has to roll
        back, because the other request will answer.
    """
    statement = (
        update(IdempotencyKey)
        .where(_held(hold))
        .values(status=answer.status, location=answer.location, body=answer.body)
        .returning(IdempotencyKey.key)
    )
    return session.scalar(statement) is not None


def give_up(session: Session, hold: Hold) -> None:
    """Free the key, after the request was refused or failed."""
    session.execute(delete(IdempotencyKey).where(_held(hold)))


def forget_expired(session: Session) -> None:
    """Delete keys whose time has passed."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.expires_at < database_now(session)))


def _matches(request: KeyedRequest) -> ColumnElement[bool]:
    return and_(IdempotencyKey.tenant_id == request.tenant_id, IdempotencyKey.key == request.key)


def _held(hold: Hold) -> ColumnElement[bool]:
    return and_(
        _matches(hold.request), IdempotencyKey.token == hold.token, IdempotencyKey.status.is_(None)
    )
