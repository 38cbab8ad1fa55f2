"""Events of a job: as a list, and as a stream that can be resumed."""

import json
import threading
from collections.abc import Iterator

import httpx
import pytest

from app.store import jobs
from app.store.engine import database_now
from app.store.models import DEFAULT_TENANT
from app.store.retention import remove_job
from tests.app.http.kit import Service, problem, wait_for

STREAM = {"accept": "text/event-stream"}


def read_stream(answer: httpx.Response) -> Iterator[dict[str, str]]:
    """The fields of each server-sent event; comments as `{"": text}`."""
    event: dict[str, str] = {}
    for line in answer.iter_lines():
        if not line:
            if event:
                yield event
            event = {}
        else:
            field, _, value = line.partition(":")
            event[field] = value.strip()


def test_list(each_service: Service) -> None:
    job_id = each_service.new_job()["id"]
    lease = each_service.claim(job_id)
    for step in range(5):
        each_service.progress(lease, step)

    def listed(**params: int) -> tuple[list[int], bool]:
        page = each_service.http.get(f"/jobs/{job_id}/events", params=params).json()
        return [event["sequence"] for event in page["data"]], page["has_more"]

    assert listed() == ([1, 2, 3, 4, 5, 6, 7], False)
    assert listed(limit=3) == ([1, 2, 3], True)
    assert listed(limit=4, after=3) == ([4, 5, 6, 7], False)
    assert listed(after=7) == ([], False)
    [event] = each_service.http.get(f"/jobs/{job_id}/events?after=6").json()["data"]
    assert event["type"] == "progress"
    assert event["data"]["step"] == 4
    for after in (-1, 2**63):
        answer = each_service.http.get(f"/jobs/{job_id}/events", params={"after": after})
        assert problem(answer, 422, "validation_error")["param"] == "after"


def test_stream_goes_on_until_the_job_is_over(each_service: Service) -> None:
    job_id = each_service.new_job()["id"]
    lease = each_service.claim(job_id)
    seen: list[dict[str, str]] = []

    def listen() -> None:
        with each_service.http.stream("GET", f"/jobs/{job_id}/events", headers=STREAM) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-cache"
            for event in read_stream(answer):
                seen.append(event)  # noqa: PERF402 - one by one: the test looks at it meanwhile

    listener = threading.Thread(target=listen)
    listener.start()
    wait_for(lambda: len(seen) == 2)
    each_service.progress(lease, 1)
    wait_for(lambda: len(seen) == 3)
    each_service.http.post(f"/jobs/{job_id}/cancel").raise_for_status()
    wait_for(lambda: len(seen) == 4)
    assert listener.is_alive()  # cancelling is not the end
    each_service.fail(lease, {"code": "x", "message": "x"})
    listener.join(timeout=10)
    assert not listener.is_alive()
    assert [event["id"] for event in seen] == ["1", "2", "3", "4", "5"]
    assert [event["event"] for event in seen] == [
        "status",
        "status",
        "progress",
        "status",
        "status",
    ]
    assert json.loads(seen[-1]["data"])["data"]["status"] == "cancelled"


def test_stream_is_resumed(each_service: Service) -> None:
    job_id = each_service.new_job()["id"]
    lease = each_service.claim(job_id)
    for step in range(250):  # more than one batch
        each_service.progress(lease, step)
    each_service.http.post(f"/jobs/{job_id}/cancel").raise_for_status()
    each_service.fail(lease, {"code": "x", "message": "x"})
    url = f"/jobs/{job_id}/events"

    def sequences(**headers: str) -> list[int]:
        headers = {**STREAM, **headers}
        with each_service.http.stream("GET", url, headers=headers) as answer:
            return [int(event["id"]) for event in read_stream(answer)]

    assert sequences() == list(range(1, 255))
    assert sequences(**{"Last-Event-ID": "120"}) == list(range(121, 255))
    over = each_service.http.get(url, headers={**STREAM, "Last-Event-ID": "254"})
    assert over.status_code == 204
    answer = each_service.http.get(url, headers={**STREAM, "Last-Event-ID": "x"})
    assert problem(answer, 422, "validation_error")["param"] == "Last-Event-ID"
    problem(each_service.http.get("/jobs/job_none/events", headers=STREAM), 404, "job_not_found")


def test_stream_of_a_job_that_is_deleted_ends(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"/jobs/{service.new_job()['id']}"
    with service.http.stream("GET", f"{url}/events", headers=STREAM) as answer:
        events = read_stream(answer)
        assert next(events)["event"] == "status"
        with service.store.write() as session:  # at once: no look falls between the two
            job_id = url.removeprefix("/jobs/")
            now = database_now(session)
            jobs.request_cancel(session, job_id, now, tenant_id=DEFAULT_TENANT)
            remove_job(session, job_id, tenant_id=DEFAULT_TENANT)
        assert list(events) == []  # an orderly end, not a connection that breaks
    assert "Traceback" not in caplog.text
    problem(service.http.get(f"{url}/events", headers=STREAM), 404, "job_not_found")


def test_idle_stream_has_heartbeats(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.http.routes.events.HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr("app.http.routes.events.POLL_SECONDS", 0.05)
    job_id = service.new_job()["id"]
    with service.http.stream("GET", f"/jobs/{job_id}/events", headers=STREAM) as answer:
        events = read_stream(answer)
        assert next(events)["event"] == "status"
        assert next(events) == {"": "ping"}


def test_open_streams_hold_up_nobody(service: Service) -> None:
    """More of them than the server has threads and connections."""
    url = f"/jobs/{service.new_job()['id']}/events"
    ended = []

    def listen() -> None:
        with service.http.stream("GET", url, headers=STREAM) as answer:
            ended.append(len(list(read_stream(answer))))

    listeners = [threading.Thread(target=listen) for _ in range(50)]
    for listener in listeners:
        listener.start()
    assert service.http.get(url.removesuffix("/events")).json()["status"] == "queued"
    service.http.post(url.replace("/events", "/cancel")).raise_for_status()
    for listener in listeners:
        listener.join(timeout=20)
    assert ended == [2] * 50
