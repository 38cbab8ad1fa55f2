"""Jobs over HTTP: created and published, listed, waited for, cancelled."""

import asyncio
import json
import logging
import threading
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.api_keys import key_id_of
from app.http.job_views import JobSnapshot, JobSnapshots
from app.store import job_reads, jobs, keys
from app.store.models import DEFAULT_TENANT
from td3engine.config.presets import build_config
from tests.app.http.kit import LOG, Service, problem, running, settings_for, wait_for


def test_create(each_service: Service) -> None:
    service = each_service
    dataset = service.dataset()
    config = {"outer": {"window": 10}, "seed": 3}
    request = {"dataset_id": dataset, "preset": "fast", "config": config, "name": "first"}
    answer = service.http.post("/jobs", json=request)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert job["config"] == build_config("fast", config).model_dump(mode="json")
    assert (job["status"], job["preset"], job["name"]) == ("queued", "fast", "first")
    assert (job["attempt"], job["max_attempts"], job["artifacts"]) == (0, 3, [])
    assert service.http.get(f"/jobs/{job['id']}").json() == job

    [message] = service.published()
    assert job["id"] in message
    with service.store.read() as session:
        row = job_reads.get(session, job["id"], tenant_id=DEFAULT_TENANT)
    assert row is not None
    assert row.published_at is not None


def test_create_with_a_file(each_service: Service) -> None:
    answer = each_service.http.post(
        "/jobs",
        files={"file": ("log.csv", LOG)},
        data={"request": json.dumps({"config": {"seed": 4}, "name": "second"})},
    )
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["config"]["seed"] == 4
    assert job["preset"] == "balanced"
    dataset = each_service.http.get(f"/datasets/{job['dataset_id']}").json()
    assert dataset["statistics"]["interactions"] == 200
    assert len(each_service.published()) == 1
    assert each_service.uploads_in_flight() == []


def test_config_errors_point_at_the_field(service: Service) -> None:
    dataset = service.dataset()
    for config, paths in [
        ({"outer": {"window": 0}}, ["config.outer.window"]),
        ({"outer": {"windw": 3}, "x": 1}, ["config.outer.windw", "config.x"]),
        ({"outer": 3}, ["config.outer"]),
        ({"outer": {"window": 4000}}, ["config"]),
        ({"seed": "\0"}, ["config.seed"]),
    ]:
        answer = service.http.post("/jobs", json={"dataset_id": dataset, "config": config})
        body = problem(answer, 422, "validation_error")
        assert [error["path"] for error in body["errors"]] == paths
        assert body["param"] == paths[0]
    nan = b'{"dataset_id": "%s", "config": {"outer": {"lr": NaN}}}' % dataset.encode()
    answer = service.http.post("/jobs", content=nan, headers={"content-type": "application/json"})
    assert problem(answer, 422, "validation_error")["param"] == "config.outer.lr"
    assert service.published() == []


def test_other_requests_that_are_refused(each_service: Service) -> None:
    post = each_service.http.post
    dataset = each_service.dataset()
    for request, param in [
        ({}, "dataset_id"),
        ({"dataset_id": dataset, "preset": "slow"}, "preset"),
        ({"dataset_id": dataset, "name": ""}, "name"),
        ({"dataset_id": dataset, "name": "a\0b"}, "name"),
        ({"dataset_id": dataset, "callback": "x"}, "callback"),
    ]:
        body = problem(post("/jobs", json=request), 422, "validation_error")
        assert body["param"] == param
    for missing in ("ds_none", "\0", "x y"):
        body = problem(post("/jobs", json={"dataset_id": missing}), 422, "dataset_not_found")
        assert body["param"] == "dataset_id"
    # With a file the request is looked at before the file is.
    answer = post("/jobs", files={"file": ("a", b"")}, data={"request": '{"dataset_id": "x"}'})
    assert problem(answer, 422, "validation_error")["param"] == "dataset_id"


def test_broker_that_is_down_leaves_the_job_queued(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = f"redis+socket://{tmp_path}/nobody.sock"
    with (
        caplog.at_level(logging.WARNING),
        running(settings_for(sqlite_url, nobody, tmp_path)) as service,
    ):
        job = service.new_job()
        assert job["status"] == "queued"
        assert job["id"] in caplog.text
        with service.store.read() as session:
            row = job_reads.get(session, job["id"], tenant_id=DEFAULT_TENANT)
        assert row is not None
        assert row.published_at is None  # so the janitor will send it


def test_list(each_service: Service) -> None:
    service = each_service
    first, second, third = (service.new_job()["id"] for _ in range(3))
    service.claim(second)
    other = service.dataset()

    def listed(**params: str | int) -> tuple[list[str], bool]:
        page = service.http.get("/jobs", params=params).json()
        return [job["id"] for job in page["data"]], page["has_more"]

    assert listed() == ([third, second, first], False)
    assert listed(limit=2) == ([third, second], True)
    assert listed(limit=2, after=second) == ([first], False)
    assert listed(status="running") == ([second], False)
    assert listed(dataset_id=other) == ([], False)


def test_lists_are_filtered(service: Service) -> None:
    names = ("a", "b", "a")
    made = [service.new_job(name=name) for name in names]

    def listed(**params: str) -> list[str]:
        answer = service.http.get("/jobs", params=params)
        assert answer.status_code == 200, answer.text
        return [job["id"] for job in answer.json()["data"]]

    assert listed(name="a") == [made[2]["id"], made[0]["id"]]
    assert listed(created_after=made[0]["created_at"]) == [made[2]["id"], made[1]["id"]]
    assert listed(created_before=made[0]["created_at"]) == []
    for param, value in [
        ("created_after", "yesterday"),
        ("created_after", "2026-01-01T00:00:00"),  # of which zone?
        ("created_before", "0001-01-01T00:00:00+14:00"),
        ("created_before", "9999-12-31T23:59:59-12:00"),
        ("name", "a\0b"),
    ]:
        answer = service.http.get("/jobs", params={param: value})
        assert problem(answer, 422, "validation_error")["param"] == param


def test_seed_metadata_and_webhook(each_service: Service) -> None:
    asked = {
        "seed": 7,
        "metadata": {"team": "search", "commit": "4f2a9c1"},
        "webhook": {
            "url": "https://example.com/hook",
            "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        },
    }
    job = each_service.new_job(**asked)
    assert (job["seed"], job["config"]["seed"], job["metadata"]) == (7, 7, asked["metadata"])
    assert job["webhook"] == {"url": "https://example.com/hook"}
    answer = each_service.http.get(f"/jobs/{job['id']}")
    assert answer.json() == job
    assert "whsec_" not in answer.text
    url = f"/jobs/{job['id']}/deliveries"
    assert each_service.http.get(url).json() == {"data": [], "has_more": False}
    each_service.http.post(f"/jobs/{job['id']}/cancel").raise_for_status()
    [delivery] = each_service.http.get(url).json()["data"]
    assert (delivery["type"], delivery["status"]) == ("job.cancelled", "pending")
    assert delivery["id"].startswith("msg_")
    assert not {"body", "secret"} & set(delivery)


def test_seed_metadata_and_webhook_that_are_refused(service: Service) -> None:
    dataset = service.dataset()
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    too_many = {f"k{number}": "v" for number in range(33)}
    refused: list[tuple[dict[str, Any], str]] = [
        ({"seed": 1, "config": {"seed": 2}}, "seed"),
        ({"seed": -1}, "seed"),
        ({"metadata": too_many}, "metadata"),
        ({"metadata": {"a b": "v"}}, "metadata.a b.[key]"),
        ({"metadata": {"a": "x" * 501}}, "metadata.a"),
        ({"metadata": {"a": "x\0"}}, "metadata.a"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"webhook": {"url": "https://example.com"}}, "webhook.secret"),
        ({"webhook": {"url": "https://example.com", "secret": "x"}}, "webhook.secret"),
        ({"webhook": {"url": "http://example.com", "secret": secret}}, "webhook.url"),
        ({"webhook": {"url": "https://127.0.0.1/x", "secret": secret}}, "webhook.url"),
        ({"webhook": {"url": "https://[::ffff:10.0.0.1]/", "secret": secret}}, "webhook.url"),
        ({"webhook": {"url": "https://a:b@example.com", "secret": secret}}, "webhook.url"),
    ]
    for asked, param in refused:
        answer = service.http.post("/jobs", json={"dataset_id": dataset, **asked})
        assert problem(answer, 422, "validation_error")["param"] == param
    assert service.http.get("/jobs").json()["data"] == []


def test_delete(each_service: Service, tmp_path: Path) -> None:
    http = each_service.http
    job_id = each_service.new_job()["id"]
    lease = each_service.claim(job_id)
    problem(http.delete(f"/jobs/{job_id}"), 409, "job_not_over")
    each_service.succeed(lease, tmp_path)
    answer = http.delete(f"/jobs/{job_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    for method, path in [("DELETE", ""), ("GET", ""), ("GET", "/events"), ("GET", "/summary")]:
        problem(http.request(method, f"/jobs/{job_id}{path}"), 404, "job_not_found")


def test_retry(each_service: Service) -> None:
    http = each_service.http
    asked = {"preset": "fast", "seed": 9, "name": "nightly", "metadata": {"a": "b"}}
    old = each_service.new_job(**asked)
    problem(http.post(f"/jobs/{old['id']}/retry"), 409, "job_not_over")
    each_service.fail(each_service.claim(old["id"]), {"code": "x", "message": "x"})
    answer = http.post(f"/jobs/{old['id']}/retry")
    assert answer.status_code == 202
    new = answer.json()
    assert answer.headers["location"] == f"/jobs/{new['id']}"
    assert new["retry_of"] == old["id"]
    assert (new["status"], new["attempt"]) == ("queued", 0)
    for field in ("dataset_id", "preset", "seed", "config", "name", "metadata", "webhook"):
        assert new[field] == old[field]
    assert len(each_service.published()) == 2
    # The old one may go: the new one only says what it was.
    assert http.delete(f"/jobs/{old['id']}").status_code == 204
    assert http.get(f"/jobs/{new['id']}").json()["retry_of"] == old["id"]


def test_a_job_whose_dataset_was_deleted_is_not_repeated(each_service: Service) -> None:
    http = each_service.http
    job = each_service.new_job()
    url = f"/datasets/{job['dataset_id']}"
    problem(http.delete(url), 409, "dataset_in_use")
    http.post(f"/jobs/{job['id']}/cancel").raise_for_status()
    assert http.delete(url).status_code == 204
    problem(http.delete(url), 404, "dataset_not_found")
    problem(http.get(url), 404, "dataset_not_found")
    problem(http.post("/jobs", json={"dataset_id": job["dataset_id"]}), 422, "dataset_not_found")
    problem(http.post(f"/jobs/{job['id']}/retry"), 409, "dataset_deleted")
    assert http.get(f"/jobs/{job['id']}").json()["dataset_id"] == job["dataset_id"]


def test_metrics(each_service: Service) -> None:
    job_id = each_service.new_job()["id"]
    lease = each_service.claim(job_id)
    for step in range(4):
        each_service.progress(lease, step)

    def points(**params: int) -> tuple[list[int], bool]:
        page = each_service.http.get(f"/jobs/{job_id}/metrics", params=params).json()
        return [point["sequence"] for point in page["data"]], page["has_more"]

    assert points() == ([3, 4, 5, 6], False)
    assert points(limit=3) == ([3, 4, 5], True)
    assert points(limit=3, after=5) == ([6], False)
    [point] = each_service.http.get(f"/jobs/{job_id}/metrics?after=5").json()["data"]
    assert set(point) == {"sequence", "created_at", "phase", "step", "total", "metrics"}
    assert (point["phase"], point["step"], point["total"]) == ("distilling", 3, 9)


def test_progress_and_failure_are_shown(each_service: Service) -> None:
    job_id = each_service.new_job()["id"]
    lease = each_service.claim(job_id)
    each_service.progress(lease, 4)
    job = each_service.http.get(f"/jobs/{job_id}").json()
    assert (job["status"], job["phase"], job["attempt"]) == ("running", "distilling", 1)
    assert job["progress"]["step"] == 4
    assert job["progress"]["seconds_left"] == 1.5
    error = {"code": "too_little_data", "message": "nothing is left"}
    each_service.fail(lease, error)
    job = each_service.http.get(f"/jobs/{job_id}").json()
    assert (job["status"], job["error"]) == ("failed", error)
    assert job["finished_at"]


def test_cancel(each_service: Service) -> None:
    post = each_service.http.post
    job_id = each_service.new_job()["id"]
    answer = post(f"/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    problem(post(f"/jobs/{job_id}/cancel"), 409, "job_is_over")

    job_id = each_service.new_job()["id"]
    each_service.claim(job_id)
    for _ in range(2):  # asking twice changes nothing
        answer = post(f"/jobs/{job_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")


def test_etag(service: Service) -> None:
    url = f"/jobs/{service.new_job()['id']}"
    etag = service.http.get(url).headers["etag"]
    same = service.http.get(url, headers={"if-none-match": f'"x", W/{etag}'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    service.http.post(f"{url}/cancel")
    changed = service.http.get(url, headers={"if-none-match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


def test_wait_answers_when_the_job_is_over(each_service: Service) -> None:
    url = f"/jobs/{each_service.new_job()['id']}"
    answers = []

    def wait() -> None:
        answers.append(each_service.http.get(url, headers={"prefer": "respond-async, wait=20"}))

    waiting = threading.Thread(target=wait)
    started = time.monotonic()
    waiting.start()
    each_service.http.post(f"{url}/cancel")
    waiting.join()
    assert time.monotonic() - started < 10
    assert answers[0].json()["status"] == "cancelled"
    assert answers[0].headers["preference-applied"] == "wait=20"


def test_wait_gives_up(service: Service) -> None:
    url = f"/jobs/{service.new_job()['id']}"
    started = time.monotonic()
    answer = service.http.get(url, headers={"prefer": "wait=1"})
    assert 0.9 < time.monotonic() - started < 5
    assert answer.json()["status"] == "queued"
    for odd in ("wait=x", "wait", "await=9", "wait=-1"):
        answer = service.http.get(url, headers={"prefer": odd})
        assert answer.status_code == 200
        assert "preference-applied" not in answer.headers


def test_wait_ends_when_the_server_stops(
    sqlite_url: str, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers at once with what there is, and does not cut the client off."""
    told = threading.Event()
    monkeypatch.setattr("app.main.stop_event", lambda: nullcontext(told))
    see = JobSnapshots.of

    async def see_and_stop(
        snapshots: JobSnapshots, tenant_id: str, job_id: str
    ) -> JobSnapshot | None:
        snapshot = await see(snapshots, tenant_id, job_id)
        told.set()
        return snapshot

    with running(settings_for(sqlite_url, broker_url, tmp_path)) as service:
        url = f"/jobs/{service.new_job()['id']}"
        monkeypatch.setattr(JobSnapshots, "of", see_and_stop)
        # The client itself would give up after 30 seconds.
        answer = service.http.get(url, headers={"prefer": "wait=60"})
        assert (answer.status_code, answer.json()["status"]) == (200, "queued")


def test_many_waiters_hold_up_nobody(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than the server has threads."""
    url = f"/jobs/{service.new_job()['id']}"
    waiting, done = set(), []
    see = JobSnapshots.of

    async def note_and_see(
        snapshots: JobSnapshots, tenant_id: str, job_id: str
    ) -> JobSnapshot | None:
        waiting.add(asyncio.current_task())
        return await see(snapshots, tenant_id, job_id)

    monkeypatch.setattr(JobSnapshots, "of", note_and_see)

    def wait() -> None:
        headers = {"prefer": "wait=60"}
        answer = service.http.get(url, headers=headers, timeout=90)
        done.append(answer.json()["status"])

    waiters = [threading.Thread(target=wait) for _ in range(60)]
    for waiter in waiters:
        waiter.start()
    wait_for(lambda: len(waiting) == 60, seconds=30)
    service.http.get("/datasets").raise_for_status()
    assert done == []  # so it was answered while all of them waited
    service.http.post(f"{url}/cancel").raise_for_status()
    for waiter in waiters:
        waiter.join()
    assert done == ["cancelled"] * 60


def test_a_wait_ends_with_its_key(each_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service = each_service
    url = f"/jobs/{service.new_job()['id']}"
    key = service.key("read")
    key_id = str(key_id_of(key))
    see = JobSnapshots.of

    async def see_and_revoke(
        snapshots: JobSnapshots, tenant_id: str, job_id: str
    ) -> JobSnapshot | None:
        snapshot = await see(snapshots, tenant_id, job_id)
        with service.store.write() as session:
            keys.revoke(session, key_id, datetime.now(UTC), tenant_id=DEFAULT_TENANT)
        return snapshot

    monkeypatch.setattr(JobSnapshots, "of", see_and_revoke)
    headers = {"prefer": "wait=60", "authorization": f"Bearer {key}"}
    problem(service.http.get(url, headers=headers), 401, "key_revoked")


def test_a_poll_sees_every_change(each_service: Service, tmp_path: Path) -> None:
    """It is what a list has, which nobody keeps, though polls are not read anew each time."""
    service = each_service
    other = {"authorization": f"Bearer {service.key('read', 'other')}"}
    own = {"authorization": f"Bearer {service.key()}"}
    service.http.headers.update(own)
    job_id = service.new_job()["id"]
    seen = []

    def look() -> None:
        answer = service.http.get(f"/jobs/{job_id}")
        listed = service.http.get("/jobs").json()["data"][0]
        assert answer.json() == listed
        assert answer.content == service.http.get(f"/jobs/{job_id}").content
        problem(service.http.get(f"/jobs/{job_id}", headers=other), 404, "job_not_found")
        seen.append(answer.headers["etag"])

    look()
    lease = service.claim(job_id)
    look()
    service.progress(lease, 1)
    look()
    service.progress(lease, 2)
    look()
    with service.store.write() as session:
        assert jobs.release(session, lease, datetime.now(UTC)) == "queued"
    look()
    lease = service.claim(job_id)
    look()
    service.succeed(lease, tmp_path)
    look()
    assert len(set(seen)) == len(seen)
    service.http.delete(f"/jobs/{job_id}").raise_for_status()
    problem(service.http.get(f"/jobs/{job_id}"), 404, "job_not_found")
