"""The outbox of webhooks: filled with a job's end, emptied by one sender at a time."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from app.store import jobs, tenants, webhooks
from app.store.engine import Store
from app.store.models import DEFAULT_TENANT, WebhookDelivery
from app.store.retention import remove_job
from app.store.webhooks import Message, Outcome
from tests.app.store.kit import ERROR, MINUTE, NOW, claim, make_dataset, make_job

WEBHOOK = {"url": "https://example.com/hook", "secret": "whsec_x"}
LATER = NOW + MINUTE


def make(store: Store, dataset_id: str, tenant_id: str = DEFAULT_TENANT) -> str:
    with store.write() as session:
        return jobs.create(
            session,
            tenant_id=tenant_id,
            dataset_id=dataset_id,
            config={},
            preset="fast",
            name="A job",
            max_attempts=1,
            labels={"team": "search"},
            webhook=WEBHOOK,
        ).id


def failed(store: Store, dataset_id: str, tenant_id: str = DEFAULT_TENANT) -> str:
    """A job that has failed, which is in the outbox."""
    lease = claim(store, make(store, dataset_id, tenant_id))
    with store.write() as session:
        jobs.give_up_attempt(session, lease, error=ERROR, permanent=True, now=NOW)
    return lease.job_id


def messages(store: Store, job_id: str) -> list[WebhookDelivery]:
    with store.read() as session:
        return webhooks.of_job(session, job_id)


def begin(store: Store, job_id: str) -> Message:
    (waiting,) = messages(store, job_id)
    with store.write() as session:
        message = webhooks.claim(session, waiting.id, NOW, again_at=LATER)
    assert message is not None
    return message


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_each_end_is_told_once(store: Store, dataset_id: str, end: str) -> None:
    job_id = make(store, dataset_id)
    with store.write() as session:
        if end == "cancelled":
            jobs.request_cancel(session, job_id, NOW, tenant_id=DEFAULT_TENANT)
        else:
            lease = jobs.claim(session, job_id, owner="me", lease=MINUTE, now=NOW)
            assert lease is not None
            assert webhooks.of_job(session, job_id) == []  # starting is not told
            if end == "succeeded":
                assert jobs.succeed(session, lease, artifacts=[], metrics={}, now=NOW)
            else:
                jobs.give_up_attempt(session, lease, error=ERROR, permanent=True, now=NOW)
    (message,) = messages(store, job_id)
    assert (message.type, message.status, message.attempts) == (f"job.{end}", "pending", 0)
    body = json.loads(message.body)
    assert (body["type"], body["timestamp"]) == (f"job.{end}", "2030-01-02T03:04:05.678901Z")
    assert body["data"] == {
        "id": job_id,
        "name": "A job",
        "status": end,
        "dataset_id": dataset_id,
        "metadata": {"team": "search"},
        "attempt": 0 if end == "cancelled" else 1,
        "error": ERROR if end == "failed" else None,
    }
    assert WEBHOOK["secret"] not in message.body


def test_a_change_that_is_rolled_back_is_not_told(store: Store, dataset_id: str) -> None:
    lease = claim(store, make(store, dataset_id))
    with pytest.raises(ConnectionError), store.write() as session:
        jobs.give_up_attempt(session, lease, error=ERROR, permanent=True, now=NOW)
        raise ConnectionError
    assert messages(store, lease.job_id) == []


def test_a_job_without_a_webhook_tells_nobody(store: Store, dataset_id: str) -> None:
    job_id = make_job(store, dataset_id)
    with store.write() as session:
        jobs.request_cancel(session, job_id, NOW, tenant_id=DEFAULT_TENANT)
    assert messages(store, job_id) == []


def test_a_message_is_claimed_by_one_sender(store: Store, dataset_id: str) -> None:
    message = begin(store, failed(store, dataset_id))
    assert (message.attempt, message.url, message.secret) == (
        1,
        WEBHOOK["url"],
        WEBHOOK["secret"],
    )
    with store.write() as session:
        assert webhooks.due(session, NOW, limit=10) == []
        assert webhooks.claim(session, message.id, NOW, again_at=LATER) is None
        # A sender that died: the same message again, and it counts.
        assert webhooks.due(session, LATER, limit=10) == [message.id]
        again = webhooks.claim(session, message.id, LATER, again_at=LATER + MINUTE)
        assert again is not None
        assert (again.id, again.attempt, again.body) == (message.id, 2, message.body)


def due_since(store: Store, dataset_id: str, tenant_id: str, since: datetime) -> str:
    """A message of this tenant that is due since then; returns its id."""
    (message,) = messages(store, failed(store, dataset_id, tenant_id))
    this = WebhookDelivery.id == message.id
    with store.write() as session:
        session.execute(update(WebhookDelivery).where(this).values(next_attempt_at=since))
    return message.id


def test_tenants_take_turns(store: Store, dataset_id: str, tmp_path: Path) -> None:
    """One with many messages, which all may go to a receiver that hangs, holds up no other."""
    with store.write() as session:
        tenants.ensure(session, "quiet")
    theirs = make_dataset(store, tmp_path, b"their log", tenant_id="quiet")
    loud = [
        due_since(store, dataset_id, DEFAULT_TENANT, NOW - timedelta(hours=9 - number))
        for number in range(5)
    ]
    quiet = [
        due_since(store, theirs, "quiet", NOW - timedelta(seconds=2 - number))
        for number in range(2)
    ]
    turns = [loud[0], quiet[0], loud[1], quiet[1], *loud[2:]]
    with store.read() as session:
        assert webhooks.due(session, NOW, limit=3) == turns[:3]
        assert webhooks.due(session, NOW, limit=16) == turns  # nobody else wants the places left


def test_outcomes(store: Store, dataset_id: str) -> None:
    job_id = failed(store, dataset_id)
    message = begin(store, job_id)
    with store.write() as session:
        webhooks.put_off(session, message, Outcome(NOW, 500, "no"), NOW + 2 * MINUTE)
    (row,) = messages(store, job_id)
    assert (row.status, row.http_status, row.error) == ("pending", 500, "no")
    with store.write() as session:
        assert webhooks.due(session, LATER, limit=10) == []
        again = webhooks.claim(session, message.id, NOW + 2 * MINUTE, again_at=NOW + 3 * MINUTE)
        assert again is not None
        # The first sender was only slow: what it says of its attempt is not heard.
        webhooks.give_up(session, message, Outcome(NOW, None, "late"))
        webhooks.delivered(session, again, Outcome(NOW, 204, None))
    (row,) = messages(store, job_id)
    assert (row.status, row.http_status, row.error) == ("delivered", 204, None)
    assert (row.attempts, row.next_attempt_at) == (2, None)
    with store.write() as session:
        assert webhooks.due(session, NOW + timedelta(days=9), limit=10) == []


def test_messages_go_with_their_job(store: Store, dataset_id: str) -> None:
    job_id = failed(store, dataset_id)
    with store.write() as session:
        assert remove_job(session, job_id, tenant_id=DEFAULT_TENANT) == "removed"
    assert messages(store, job_id) == []
