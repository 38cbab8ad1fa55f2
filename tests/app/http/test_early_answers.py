"""Answers that do not wait for the body: they arrive, and what follows is bounded."""

import socket
import time

import httpx
import pytest

from app.http import early_answers
from tests.app.http.kit import Service, problem

PIECE = b"x" * 65536
NEVER_ENDS = 10**15


@pytest.fixture
def closed(service: Service) -> Service:
    """A service with a key, which the requests of these tests do not send."""
    service.key()
    return service


def _connect(service: Service) -> socket.socket:
    url = httpx.URL(service.url)
    return socket.create_connection((url.host, url.port or 80), timeout=30)


def _head(length: int, *more: str, version: str = "1.1") -> bytes:
    lines = [f"POST /datasets HTTP/{version}", "Host: x", f"Content-Length: {length}", *more]
    return ("\r\n".join([*lines, "", ""])).encode()


def _read_to_end(client: socket.socket) -> bytes:
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_a_client_that_reads_after_it_has_sent(closed: Service) -> None:
    """As nginx does: HTTP/1.0, and its own end only after the server's."""
    for _ in range(5):
        with _connect(closed) as client:
            client.sendall(_head(len(PIECE) * 100, version="1.0"))
            for _ in range(100):
                client.sendall(PIECE)  # a reset would break this, or the next line
            assert _read_to_end(client).startswith(b"HTTP/1.1 401 ")


def test_connections_are_kept_where_the_body_ends_soon(closed: Service) -> None:
    for _ in range(3):
        answer = closed.http.post("/datasets", content=PIECE * 4)
        problem(answer, 401, "key_required")
        assert "connection" not in answer.headers


def test_what_is_read_is_bounded(closed: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_answers, "MOST_BYTES", len(PIECE) * 8)
    sent = 0
    with _connect(closed) as client:
        client.sendall(_head(NEVER_ENDS))
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            while sent < 2**30:
                sent += client.send(PIECE)
    assert sent < 2**26  # the limit, and what the buffers of both ends hold


def test_a_body_without_end_has_its_connection_closed(
    closed: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client hears that, sends nothing more, and is not waited for."""
    monkeypatch.setattr(early_answers, "_PAUSE_SECONDS", 0.1)
    for length in (NEVER_ENDS, len(PIECE)):
        with _connect(closed) as client:
            client.sendall(_head(length, *(["Connection: close"] if length < NEVER_ENDS else [])))
            begin = time.monotonic()
            answer = _read_to_end(client)
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b"connection: close" in answer.lower()
            assert time.monotonic() - begin < 5


def test_a_client_that_asks_before_it_sends(closed: Service) -> None:
    with _connect(closed) as client:
        client.sendall(_head(len(PIECE), "Expect: 100-continue", "Connection: close"))
        begin = time.monotonic()
        answer = _read_to_end(client)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert time.monotonic() - begin < early_answers._PAUSE_SECONDS  # nothing was waited for


def test_refusals_of_known_callers_arrive_as_well(closed: Service) -> None:
    headers = {"authorization": f"Bearer {closed.key()}", "content-type": "image/png"}
    answer = httpx.post(f"{closed.url}/datasets", content=PIECE * 100, headers=headers)
    problem(answer, 415, "unsupported_media_type")
