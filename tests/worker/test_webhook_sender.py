"""Messages to webhooks, from the outbox to a real receiver."""

import base64
import hashlib
import hmac
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from app.settings import Settings
from app.store import jobs, webhooks
from app.store.engine import Store, database_now
from app.store.models import DEFAULT_TENANT, WebhookDelivery
from tests.worker.kit import ROOT, Service, wait_for
from worker import webhook_sender as sender_module
from worker.webhook_sender import PAUSES, WebhookSender

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
LOOPBACK = [ip_network("127.0.0.0/8")]


class Receiver(ThreadingHTTPServer):
    """Keeps what it was sent; answers with `answers`, one after another, the last one for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, dict[str, str]]] = [(204, {})]
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.gate = threading.Event()  # answers wait for it
        self.gate.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?x=1"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.received.append(({**headers, ":path": self.path}, body))
        answers = self.server.answers
        status, more = answers.pop(0) if len(answers) > 1 else answers[0]
        self.server.gate.wait(timeout=30)
        self.send_response(status)
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever, args=(0.02,))
        thread.start()
        yield receiver
        receiver.gate.set()
        receiver.shutdown()
        thread.join()


@pytest.fixture
def sender(service: Service, tmp_path: Path) -> WebhookSender:
    settings = Settings(data_dir=tmp_path / "data", webhook_networks=LOOPBACK)
    return WebhookSender(service.store, settings)


def cancelled_job(service: Service, url: str) -> str:
    """A job that is over, whose webhook is there."""
    other = service.job(service.make_job([], publish=False))
    with service.store.write() as session:
        job = jobs.create(
            session,
            tenant_id=DEFAULT_TENANT,
            dataset_id=other.dataset_id,
            config={},
            preset="fast",
            name=None,
            max_attempts=1,
            webhook={"url": url, "secret": SECRET},
        )
        jobs.request_cancel(session, job.id, database_now(session), tenant_id=DEFAULT_TENANT)
    return job.id


def delivery(store: Store, job_id: str) -> WebhookDelivery:
    with store.read() as session:
        (found,) = webhooks.of_job(session, job_id)
    return found


def make_due(store: Store) -> None:
    """As if the pause were over."""
    with store.write() as session:
        now = database_now(session)
        pending = WebhookDelivery.status == "pending"
        session.execute(update(WebhookDelivery).where(pending).values(next_attempt_at=now))


def verified(headers: dict[str, str], body: bytes) -> dict[str, Any]:
    """The content, once the signature is that of the standard."""
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    sent = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    assert abs(datetime.now(UTC) - sent) < timedelta(minutes=5)
    content: dict[str, Any] = json.loads(body)
    return content


def test_delivered(service: Service, sender: WebhookSender, receiver: Receiver) -> None:
    job_id = cancelled_job(service, receiver.url)
    assert sender.round() == 1
    assert sender.round() == 0
    [(headers, body)] = receiver.received
    content = verified(headers, body)
    assert (content["type"], content["data"]["id"]) == ("job.cancelled", job_id)
    assert headers["content-type"] == "application/json"
    assert headers["host"] == f"127.0.0.1:{receiver.server_port}"
    assert headers[":path"] == "/hook?x=1"
    row = delivery(service.store, job_id)
    assert (row.status, row.attempts, row.http_status, row.error) == ("delivered", 1, 204, None)
    assert row.id == headers["webhook-id"]


def test_tried_again_later_with_the_same_id(
    service: Service, sender: WebhookSender, receiver: Receiver
) -> None:
    receiver.answers = [(500, {}), (302, {"location": receiver.url}), (200, {})]
    job_id = cancelled_job(service, receiver.url)
    for attempt, status in [(1, 500), (2, 302)]:
        assert sender.round() == 1
        row = delivery(service.store, job_id)
        assert (row.status, row.attempts, row.http_status) == ("pending", attempt, status)
        assert row.next_attempt_at is not None
        assert row.last_attempt_at is not None
        pause = row.next_attempt_at - row.last_attempt_at
        assert PAUSES[attempt - 1] <= pause <= PAUSES[attempt - 1] * 1.1
        assert sender.round() == 0
        make_due(service.store)
    assert sender.round() == 1
    assert delivery(service.store, job_id).status == "delivered"
    assert len(receiver.received) == 3  # the redirect was not followed
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1
    assert len({body for _, body in receiver.received}) == 1


def test_given_up_in_the_end(service: Service, sender: WebhookSender, receiver: Receiver) -> None:
    receiver.answers = [(503, {})]
    job_id = cancelled_job(service, receiver.url)
    while sender.round():
        make_due(service.store)
    row = delivery(service.store, job_id)
    assert (row.status, row.attempts, row.http_status) == ("failed", len(PAUSES) + 1, 503)
    assert "503" in (row.error or "")


def test_a_receiver_that_wants_no_more(
    service: Service, sender: WebhookSender, receiver: Receiver
) -> None:
    receiver.answers = [(410, {})]
    job_id = cancelled_job(service, receiver.url)
    sender.round()
    assert delivery(service.store, job_id).status == "failed"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1"])
def test_addresses_inside_are_not_called(
    service: Service,
    receiver: Receiver,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    host: str,
) -> None:
    """Whatever they are called: what counts is where the name leads at this moment."""
    job_id = cancelled_job(service, f"http://{host}:{receiver.server_port}/")
    strict = Settings(data_dir=tmp_path / "data")
    with caplog.at_level(logging.INFO, logger="worker.webhook_sender"):
        assert WebhookSender(service.store, strict).round() == 1
    row = delivery(service.store, job_id)
    assert (row.status, row.http_status) == ("pending", None)
    assert row.error == f"DeliveryError: {host} has no address that may be called"
    assert "which may not be called" in caplog.text  # the operator sees where it led
    assert receiver.received == []


def test_a_client_cannot_ask_which_names_there_are_inside(service: Service, tmp_path: Path) -> None:
    """A name that leads inside and one that there is not are told alike."""
    names = ("localhost", "no-such-host.invalid")
    jobs_ = [cancelled_job(service, f"http://{name}/") for name in names]
    WebhookSender(service.store, Settings(data_dir=tmp_path / "data")).round()
    errors = [delivery(service.store, job_id).error or "" for job_id in jobs_]
    assert errors[0].replace(*names) == errors[1]


def test_one_bad_receiver_holds_up_no_other(
    service: Service,
    sender: WebhookSender,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender_module, "SEND_SECONDS", 0.5)
    names = ("http://no-such-host.invalid/", f"http://{'a' * 70}.invalid/", "http://127.0.0.1:1/")
    broken = [cancelled_job(service, url) for url in names]
    with Receiver() as silent:  # listens, and nobody answers
        slow = cancelled_job(service, silent.url)
        good = cancelled_job(service, receiver.url)
        assert sender.round() == 5
    assert delivery(service.store, good).status == "delivered"
    for job_id in (*broken, slow):
        row = delivery(service.store, job_id)
        assert (row.status, row.http_status) == ("pending", None)
        assert row.error
    assert "longer than" in (delivery(service.store, slow).error or "")


def test_names_that_are_long_looked_for_hold_up_no_other(
    service: Service,
    sender: WebhookSender,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Looking for a name takes a thread, as long as the name's servers like."""
    found = threading.Event()
    look_up = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: Any, **options: Any) -> Any:
        if host == "slow.invalid":
            found.wait(timeout=30)
        return look_up("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for _ in range(15):
        cancelled_job(service, f"http://slow.invalid:{receiver.server_port}/")
    good = cancelled_job(service, f"http://good.invalid:{receiver.server_port}/")
    with ThreadPoolExecutor(1) as pool:
        round_ = pool.submit(sender.round)
        try:
            wait_for(lambda: delivery(service.store, good).status == "delivered", "the good one")
        finally:
            found.set()
        assert round_.result() == 16


SENDER = """
import sys
from ipaddress import ip_network
from app.settings import Settings
from app.store.engine import open_store
from worker.webhook_sender import WebhookSender

settings = Settings(webhook_networks=[ip_network("127.0.0.0/8")])
WebhookSender(open_store(settings.database_url), settings).round()
"""


def test_kill_9_while_sending(service: Service, sender: WebhookSender, receiver: Receiver) -> None:
    """It may have arrived or not: it is sent again, under the same id."""
    receiver.gate.clear()
    job_id = cancelled_job(service, receiver.url)
    environment = {**os.environ, **service.environment}
    victim = subprocess.Popen([sys.executable, "-c", SENDER], cwd=ROOT, env=environment)
    wait_for(lambda: receiver.received, "the first attempt")
    victim.send_signal(signal.SIGKILL)
    victim.wait(timeout=10)
    receiver.gate.set()
    row = delivery(service.store, job_id)
    assert (row.status, row.attempts) == ("pending", 1)
    assert sender.round() == 0  # the first one might still be at it
    make_due(service.store)
    assert sender.round() == 1
    assert delivery(service.store, job_id).status == "delivered"
    (first, _), (second, _) = receiver.received
    assert first["webhook-id"] == second["webhook-id"]


def test_a_worker_tells_the_end_of_its_job(service: Service, receiver: Receiver) -> None:
    job_id = cancelled_job(service, receiver.url)
    service.start_worker(WEBHOOK_NETWORKS='["127.0.0.0/8"]', WEBHOOK_SECONDS="0.1")
    wait_for(lambda: delivery(service.store, job_id).status == "delivered", service.logs)
    [(headers, body)] = receiver.received
    assert verified(headers, body)["data"]["status"] == "cancelled"


def test_a_worker_whose_metrics_port_is_taken_does_all_else(
    service: Service, receiver: Receiver
) -> None:
    over = cancelled_job(service, receiver.url)
    lost = service.make_job([["result"]], publish=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        worker = service.start_worker(
            WORKER_METRICS_PORT=str(port),
            WEBHOOK_NETWORKS='["127.0.0.0/8"]',
            WEBHOOK_SECONDS="0.1",
        )
        wait_for(lambda: "TD3_WORKER_METRICS_PORT" in service.logs(), service.logs)
        wait_for(lambda: delivery(service.store, over).status == "delivered", service.logs)
        service.wait_status(lost, "succeeded")  # the janitor sent it
    [said] = [r for r in service.records() if "TD3_WORKER_METRICS_PORT" in r["message"]]
    assert said["level"] == "ERROR"
    assert f"127.0.0.1:{port}" in said["message"]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=20) == 0
