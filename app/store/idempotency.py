"""Keys that make a repeated request harmless: who may act on one, and what was answered.

A key is held while its request is served, and finished in the same transaction as what the request
makes, so a crash leaves either nothing or the thing with its answer. A hold that is not renewed
lapses, and the same request may take it over. One INSERT ... ON CONFLICT decides who is first.
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
class Asked:
    """A request under a key: `sha256` stands for all of what was asked for."""

    tenant_id: str
    key: str
    sha256: str


@dataclass(frozen=True)
class Hold:
    """The right to act on a key."""

    asked: Asked
    token: str


@dataclass(frozen=True)
class Answer:
    """What a request was answered, to be given again."""

    status: int
    location: str
    body: str


def take(
    session: Session, asked: Asked, *, hold: timedelta, keep: timedelta
) -> Hold | Answer | Literal["in_progress", "other_request"]:
    """Take a key that is free, or say why it is not: it has been answered already, its request is
    being served at this moment, or it was used for another request.

    Args:
        hold: how long it is held unless `renew` is called.
        keep: how long the key and its answer are remembered.
    """
    now = database_now(session)
    lapsed = and_(IdempotencyKey.status.is_(None), IdempotencyKey.held_until < now)
    free = or_(
        IdempotencyKey.expires_at < now,
        and_(lapsed, IdempotencyKey.request_sha256 == asked.sha256),
    )
    values = {
        "request_sha256": asked.sha256,
        "token": secrets.token_hex(16),
        "held_until": now + hold,
        "expires_at": now + keep,
        "status": None,
        "location": None,
        "body": None,
    }
    statement = insert_into(session, IdempotencyKey).values(
        tenant_id=asked.tenant_id, key=asked.key, **values
    )
    statement = statement.on_conflict_do_update(
        index_elements=[IdempotencyKey.tenant_id, IdempotencyKey.key], set_=values, where=free
    )
    token = session.scalar(statement.returning(IdempotencyKey.token))
    if token is not None:
        return Hold(asked, token)
    found = session.scalar(select(IdempotencyKey).where(_is(asked)))
    if found is None:
        return "in_progress"  # given up at this very moment: the next try will have it
    if found.request_sha256 != asked.sha256:
        return "other_request"
    if found.status is None or found.location is None or found.body is None:
        return "in_progress"
    return Answer(found.status, found.location, found.body)


def renew(session: Session, hold: Hold, *, hold_for: timedelta) -> None:
    """Keep holding the key; does nothing where it has lapsed and been taken over."""
    until = database_now(session) + hold_for
    session.execute(update(IdempotencyKey).where(_held(hold)).values(held_until=until))


def finish(session: Session, hold: Hold, answer: Answer) -> bool:
    """Keep the answer, in the transaction that makes what it tells of.

    False: the hold lapsed and somebody took over. Roll back: they will answer.
    """
    statement = (
        update(IdempotencyKey)
        .where(_held(hold))
        .values(status=answer.status, location=answer.location, body=answer.body)
        .returning(IdempotencyKey.key)
    )
    return session.scalar(statement) is not None


def give_up(session: Session, hold: Hold) -> None:
    """The request was refused or failed: the key is free again."""
    session.execute(delete(IdempotencyKey).where(_held(hold)))


def forget_expired(session: Session) -> None:
    """Delete keys that were kept for long enough."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.expires_at < database_now(session)))


def _is(asked: Asked) -> ColumnElement[bool]:
    return and_(IdempotencyKey.tenant_id == asked.tenant_id, IdempotencyKey.key == asked.key)


def _held(hold: Hold) -> ColumnElement[bool]:
    return and_(
        _is(hold.asked), IdempotencyKey.token == hold.token, IdempotencyKey.status.is_(None)
    )
