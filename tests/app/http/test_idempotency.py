"""`Idempotency-Key` over HTTP: what is sent again is answered again, and done once."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from app.store.models import IdempotencyKey
from tests.app.http.kit import LOG, Service, problem, wait_for


def under(key: str) -> dict[str, str]:
    return {"idempotency-key": key}


def count(service: Service, what: str) -> int:
    return len(service.http.get(f"/{what}").json()["data"])


def same(first: httpx.Response, again: httpx.Response) -> None:
    """The second answer is the first one, and says so."""
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["location"] == first.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"


def test_a_job_is_made_once(each_service: Service) -> None:
    service = each_service
    request = {"dataset_id": service.dataset(), "seed": 3}
    answers = [service.http.post("/jobs", json=request, headers=under("k")) for _ in range(2)]
    assert answers[0].status_code == 202, answers[0].text
    same(*answers)
    assert count(service, "jobs") == 1
    assert len(service.published()) == 1

    other = service.http.post("/jobs", json={**request, "seed": 4}, headers=under("k"))
    assert problem(other, 422, "idempotency_key_reused")["param"] == "Idempotency-Key"
    # The route belongs to the request, and without a key each one counts.
    job_id = answers[0].json()["id"]
    service.http.post(f"/jobs/{job_id}/cancel").raise_for_status()
    retry = service.http.post(f"/jobs/{job_id}/retry", headers=under("k"))
    problem(retry, 422, "idempotency_key_reused")
    service.http.post("/jobs", json=request).raise_for_status()
    assert count(service, "jobs") == 2
    # The first answer, also when the job has moved on.
    same(answers[0], service.http.post("/jobs", json=request, headers=under("k")))


def test_a_retry_is_made_once(each_service: Service) -> None:
    job_id = each_service.new_job()["id"]
    each_service.http.post(f"/jobs/{job_id}/cancel").raise_for_status()
    url = f"/jobs/{job_id}/retry"
    same(*(each_service.http.post(url, headers=under("k")) for _ in range(2)))
    assert count(each_service, "jobs") == 2


def test_uploads_are_compared_by_their_content(service: Service) -> None:
    def upload(content: str, **fields: str) -> httpx.Response:
        file = {"file": ("log.csv", content)}
        return service.http.post("/datasets", files=file, data=fields, headers=under("k"))

    same(upload(LOG, name="a"), upload(LOG, name="a"))  # (their boundaries differ)
    problem(upload(LOG + "u1,i1,999\n", name="a"), 422, "idempotency_key_reused")
    problem(upload(LOG, name="b"), 422, "idempotency_key_reused")
    assert count(service, "datasets") == 1

    def submit(seed: int) -> httpx.Response:
        data = {"request": f'{{"seed": {seed}}}'}
        file = {"file": ("log.csv", LOG)}
        return service.http.post("/jobs", files=file, data=data, headers=under("j"))

    same(submit(1), submit(1))
    problem(submit(2), 422, "idempotency_key_reused")
    assert count(service, "jobs") == 1


def test_a_refused_request_leaves_its_key_free(service: Service) -> None:
    refused = service.http.post("/jobs", json={"dataset_id": "ds_none"}, headers=under("k"))
    problem(refused, 422, "dataset_not_found")
    request = {"dataset_id": service.dataset()}
    assert service.http.post("/jobs", json=request, headers=under("k")).status_code == 202


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "\xe9"])
def test_keys_that_cannot_be(service: Service, key: str) -> None:
    headers = [(b"idempotency-key", key.encode("latin-1"))]
    answer = service.http.post("/jobs", json={"dataset_id": service.dataset()}, headers=headers)
    assert problem(answer, 422, "validation_error")["param"] == "Idempotency-Key"


def test_of_many_at_once_one_is_served(each_service: Service) -> None:
    request = {"dataset_id": each_service.dataset()}
    threads = 8
    barrier = Barrier(threads)

    def post(_: int) -> httpx.Response:
        barrier.wait(timeout=10)
        return each_service.http.post("/jobs", json=request, headers=under("k"))

    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(post, range(threads)))
    served = [answer for answer in answers if answer.status_code == 202]
    assert len({answer.json()["id"] for answer in served}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in served) == 1
    for answer in answers:
        if answer.status_code != 202:
            problem(answer, 409, "idempotency_key_in_use")
            assert int(answer.headers["retry-after"]) > 0
    assert count(each_service, "jobs") == 1


API = """
import sys, time, uvicorn
from app.http import uploads
from app.main import app

def hang(*_):
    print("hanging", flush=True)
    time.sleep(600)

uploads.store_bytes = hang
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
"""


def test_kill_9_in_mid_request(service: Service, tmp_path: Path) -> None:
    """Nobody is left behind who holds the key: it lapses, and the same request is done once."""
    port = _free_port()
    environment = {
        **os.environ,
        "TD3_DATABASE_URL": service.settings.database_url,
        "TD3_BROKER_URL": service.settings.broker_url,
        "TD3_DATA_DIR": str(tmp_path / "victim"),
    }
    victim = subprocess.Popen(
        [sys.executable, "-c", API, str(port)], env=environment, stdout=subprocess.PIPE
    )
    arguments: dict[str, Any] = {
        "files": {"file": ("log.csv", LOG)},
        "headers": under("k"),
        "timeout": 60,
    }
    with ThreadPoolExecutor(1) as pool:
        wait_for(lambda: _answers(port), seconds=60)
        lost = pool.submit(httpx.post, f"http://127.0.0.1:{port}/datasets", **arguments)
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"hanging\n"
        in_use = service.http.post("/datasets", **arguments)
        problem(in_use, 409, "idempotency_key_in_use")
        victim.send_signal(signal.SIGKILL)
        victim.wait(timeout=10)
        assert isinstance(lost.exception(timeout=10), httpx.TransportError)
    with service.store.write() as session:  # half a minute later
        session.execute(update(IdempotencyKey).values(held_until=datetime(2026, 1, 1, tzinfo=UTC)))
    first = service.http.post("/datasets", **arguments)
    assert first.status_code == 201, first.text
    same(first, service.http.post("/datasets", **arguments))
    assert count(service, "datasets") == 1


def _free_port() -> int:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz").is_success
    except httpx.TransportError:
        return False
