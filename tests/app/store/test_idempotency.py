"""Keys: one holder at a time, one answer for ever (for a while), and no way around either."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from threading import Barrier
from typing import Literal

import pytest
from sqlalchemy import func, select

from app.store import idempotency
from app.store.engine import Store
from app.store.idempotency import Answer, Hold, KeyedRequest
from app.store.models import DEFAULT_TENANT, IdempotencyKey
from app.store.tenants import ensure

ASKED = KeyedRequest(DEFAULT_TENANT, "key", "a" * 64)
ANSWER = Answer(202, "/jobs/job_1", '{"id": "job_1"}')
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
OVER = timedelta(seconds=-1)  # what is held or kept for so long is over already

Taken = Hold | Answer | Literal["in_progress", "other_request"]


def take(
    store: Store, asked: KeyedRequest = ASKED, *, hold: timedelta = MINUTE, keep: timedelta = DAY
) -> Taken:
    with store.write() as session:
        return idempotency.take(session, asked, hold=hold, keep=keep)


def hold(store: Store, asked: KeyedRequest = ASKED, *, hold: timedelta = MINUTE) -> Hold:
    taken = take(store, asked, hold=hold)
    assert isinstance(taken, Hold)
    return taken


def finish(store: Store, held: Hold, answer: Answer = ANSWER) -> bool:
    with store.write() as session:
        return idempotency.finish(session, held, answer)


def test_the_first_answer_is_given_again(store: Store) -> None:
    held = hold(store)
    assert take(store) == "in_progress"
    assert finish(store, held)
    assert take(store) == ANSWER
    assert take(store) == ANSWER
    assert not finish(store, held, replace(ANSWER, body="another"))  # answered once


def test_another_request_is_refused_before_and_after_the_answer(store: Store) -> None:
    other = replace(ASKED, sha256="b" * 64)
    held = hold(store)
    assert take(store, other) == "other_request"
    finish(store, held)
    assert take(store, other) == "other_request"


def test_keys_of_tenants_have_nothing_to_do_with_each_other(store: Store) -> None:
    with store.write() as session:
        ensure(session, "other")
    finish(store, hold(store))
    theirs = replace(ASKED, tenant_id="other", sha256="b" * 64)
    assert isinstance(take(store, theirs), Hold)


def test_a_hold_that_lapsed_is_taken_over_by_the_same_request_only(store: Store) -> None:
    dead = hold(store, hold=OVER)
    assert take(store, replace(ASKED, sha256="b" * 64)) == "other_request"
    heir = hold(store)
    assert not finish(store, dead)  # it was only slow: fenced out
    with store.write() as session:
        idempotency.give_up(session, dead)
        idempotency.renew(session, dead, hold_for=DAY)
    assert finish(store, heir)
    assert take(store) == ANSWER


def test_a_hold_is_renewed(store: Store) -> None:
    held = hold(store, hold=OVER)
    with store.write() as session:
        idempotency.renew(session, held, hold_for=MINUTE)
    assert take(store) == "in_progress"


def test_a_key_that_was_given_up_is_free(store: Store) -> None:
    held = hold(store)
    with store.write() as session:
        idempotency.give_up(session, held)
    finish(store, hold(store, replace(ASKED, sha256="b" * 64)))


def test_an_answer_is_not_given_up(store: Store) -> None:
    held = hold(store)
    finish(store, held)
    with store.write() as session:
        idempotency.give_up(session, held)
    assert take(store) == ANSWER


def test_keys_expire(store: Store) -> None:
    taken = take(store, keep=OVER)
    assert isinstance(taken, Hold)
    finish(store, taken)
    other = replace(ASKED, sha256="b" * 64)
    finish(store, hold(store, other))  # free for anything, also before the janitor comes
    finish(store, hold(store, replace(ASKED, key="kept")))
    assert isinstance(take(store, replace(ASKED, key="old"), keep=OVER), Hold)
    with store.write() as session:
        idempotency.forget_expired(session)
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(IdempotencyKey)) == 2


def test_one_of_many_at_once_holds_it(store: Store) -> None:
    threads = 8
    barrier = Barrier(threads)

    def attempt(_: int) -> Taken:
        barrier.wait(timeout=10)
        return take(store)

    with ThreadPoolExecutor(threads) as pool:
        taken = list(pool.map(attempt, range(threads)))
    assert sum(isinstance(one, Hold) for one in taken) == 1
    assert taken.count("in_progress") == threads - 1


def test_what_a_request_makes_and_its_answer_are_one_transaction(store: Store) -> None:
    held = hold(store)
    with pytest.raises(ConnectionError), store.write() as session:
        ensure(session, "made")
        assert idempotency.finish(session, held, ANSWER)
        raise ConnectionError
    assert take(store) == "in_progress"
