"""API keys: who gets in, with which scope, until when; and who gets in without one."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.types import Scope

from app.api_keys import make_key
from app.http.auth import KEYS_LOOKUP_SECONDS, Authenticator, is_local
from app.store import keys
from app.store.ids import new_id
from app.store.models import ApiKey
from td3engine.client import Client, ServiceError
from tests.app.http.kit import Service, bearer, problem

LOCAL = {"host": "127.0.0.1:8000"}


def row_of(service: Service, key: str) -> ApiKey:
    with service.store.read() as session:
        row = keys.find(session, f"key_{key.split('_')[1]}")
    assert row is not None
    return row


def test_a_key_opens_and_only_its_digest_is_stored(each_service: Service) -> None:
    key = each_service.key("read")
    row = row_of(each_service, key)
    assert row.last_used_at is None
    assert key not in str(vars(row))
    assert each_service.http.get("/jobs", headers=bearer(key)).status_code == 200
    used = row_of(each_service, key).last_used_at
    assert used is not None
    each_service.http.get("/jobs", headers=bearer(key))
    assert row_of(each_service, key).last_used_at == used, "written at most every ten minutes"


def test_keys_that_are_not_good(each_service: Service) -> None:
    service = each_service
    good = service.key()
    forged = make_key(row_of(service, good).id)
    for headers, code in [
        ({}, "key_required"),
        ({"Authorization": "Basic dTpw"}, "key_invalid"),
        (bearer("x"), "key_invalid"),
        (bearer(good[:-1]), "key_invalid"),
        (bearer(forged), "key_invalid"),
        (bearer(make_key(new_id("key"))), "key_invalid"),
        (bearer(service.key(expires_at=datetime.now(UTC) - timedelta(seconds=1))), "key_expired"),
    ]:
        answer = service.http.get("/jobs", headers=headers)
        problem(answer, 401, code)
        challenge = answer.headers["www-authenticate"]
        assert challenge.startswith('Bearer realm="td3"')
        assert ('error="invalid_token"' in challenge) == (code != "key_required")
    later = service.key(expires_at=datetime.now(UTC) + timedelta(hours=1))
    assert service.http.get("/jobs", headers=bearer(later)).status_code == 200
    twice = [("Authorization", f"Bearer {good}")] * 2
    problem(service.http.get("/jobs", headers=twice), 401, "key_invalid")
    # What there is does not show to those who may not ask.
    problem(service.http.get("/nothing"), 401, "key_required")
    assert service.http.get("/healthz").status_code == 200
    assert service.http.get("/readyz").status_code == 200


def test_revoking_works_at_once_and_does_not_open_the_service(each_service: Service) -> None:
    service = each_service
    key = service.key("admin")
    answer = service.http.post("/keys", json={"name": "second"}, headers=bearer(key))
    second = answer.json()
    assert answer.headers["location"] == f"/keys/{second['id']}"
    assert service.http.get("/jobs", headers=bearer(second["key"])).status_code == 200
    for _ in range(2):
        done = service.http.delete(f"/keys/{second['id']}", headers=bearer(key))
        assert (done.status_code, done.content) == (204, b"")
        problem(service.http.get("/jobs", headers=bearer(second["key"])), 401, "key_revoked")
    listed = service.http.get("/keys", headers=bearer(key)).json()["data"]
    assert [one["id"] for one in listed] == [second["id"], row_of(service, key).id]
    assert listed[0]["revoked_at"]
    assert all("key" not in one and "digest" not in one for one in listed)

    own = listed[1]["id"]
    assert service.http.delete(f"/keys/{own}", headers=bearer(key)).status_code == 204
    problem(service.http.get("/jobs"), 401, "key_required")


def test_a_stream_ends_with_its_key(service: Service) -> None:
    job_id = service.new_job()["id"]
    key = service.key()
    lease = service.claim(job_id)
    headers = {**bearer(key), "accept": "text/event-stream"}
    with service.http.stream("GET", f"/jobs/{job_id}/events", headers=headers) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: status"
        with service.store.write() as session:
            row = row_of(service, key)
            keys.revoke(session, row.id, datetime.now(UTC), tenant_id=row.tenant_id)
        service.progress(lease, step=7)
        assert not any('"step":7' in line for line in lines)


def test_scopes(service: Service) -> None:
    job = service.new_job()["id"]
    for scope, get, post, keys_ in [
        ("read", 200, 403, 403),
        ("write", 200, 202, 403),
        ("admin", 200, 202, 200),
    ]:
        headers = bearer(service.key(scope))  # type: ignore[arg-type]
        assert service.http.get(f"/jobs/{job}", headers=headers).status_code == get
        request = {"dataset_id": service.dataset()}
        answer = service.http.post("/jobs", json=request, headers=headers)
        assert answer.status_code == post
        if post == 403:
            problem(answer, 403, "insufficient_scope")
            assert 'scope="write"' in answer.headers["www-authenticate"]
        assert service.http.get("/keys", headers=headers).status_code == keys_


def test_a_key_of_the_past_or_unknown_fields_are_refused(service: Service) -> None:
    admin = bearer(service.key("admin"))
    for body, param in [
        ({"name": "x", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "x", "expires_at": "2030-01-01T00:00:00"}, "expires_at"),
        # Beyond what a database can hold, or a zone can be added to.
        ({"name": "x", "expires_at": "9999-12-31T23:59:59-01:00"}, "expires_at"),
        ({"name": "x", "expires_at": "9999-12-31T23:59:59Z"}, "expires_at"),
        ({"name": "x", "expires_at": "0001-01-01T00:00:00+01:00"}, "expires_at"),
        ({"name": "x", "scope": "all"}, "scope"),
        ({"name": "x", "tenant_id": "other"}, "tenant_id"),
        ({}, "name"),
    ]:
        answer = service.http.post("/keys", json=body, headers=admin)
        assert problem(answer, 422, "validation_error")["param"] == param
    json = {**admin, "content-type": "application/json"}
    for content, headers, status, code in [
        (b"{", json, 400, "invalid_json"),
        (b" " * 300_000, json, 413, "too_large"),
        (b"{}", {**admin, "content-type": "text/plain"}, 415, "unsupported_media_type"),
    ]:
        problem(service.http.post("/keys", content=content, headers=headers), status, code)
    problem(service.http.get("/keys/key_none", headers=admin), 404, "key_not_found")
    problem(service.http.delete("/keys/%00", headers=admin), 404, "key_not_found")


def test_the_latest_expiry_can_be_written_and_read(each_service: Service) -> None:
    admin = bearer(each_service.key("admin"))
    body = {"name": "x", "expires_at": "9998-12-31T23:59:59-12:00"}
    made = each_service.http.post("/keys", json=body, headers=admin)
    assert made.status_code == 201, made.text
    listed = each_service.http.get("/keys", headers=admin).json()["data"]
    assert listed[0]["expires_at"] == "9999-01-01T11:59:59Z"
    assert each_service.http.get("/jobs", headers=bearer(made.json()["key"])).status_code == 200


def test_without_keys_this_machine_may_all_but_make_one(service: Service) -> None:
    assert service.new_job()["status"] == "queued"
    problem(service.http.post("/keys", json={"name": "x"}), 403, "insufficient_scope")
    problem(service.http.get("/jobs", headers=bearer(make_key(new_id("key")))), 401, "key_invalid")
    for headers in (
        {"Host": "td3.example.org"},
        {"Origin": "https://example.org"},
        {"X-Forwarded-For": "192.0.2.1"},
    ):
        problem(service.http.post("/jobs", json={}, headers=headers), 401, "key_required")


@pytest.mark.parametrize(
    ("server", "client", "headers", "local"),
    [
        ("127.0.0.1", "127.0.0.1", LOCAL, True),
        ("::1", "::1", {"host": "[::1]:8000"}, True),
        ("127.0.0.1", "127.0.0.1", {"host": "localhost"}, True),
        ("127.0.0.1", "127.0.0.1", {**LOCAL, "origin": "http://127.0.0.1:8000"}, True),
        ("127.0.0.1", "127.0.0.1", {**LOCAL, "origin": "http://127.0.0.1:9000"}, False),
        ("127.0.0.1", "127.0.0.1", {**LOCAL, "origin": "null"}, False),
        ("127.0.0.1", "127.0.0.1", {}, False),
        ("127.0.0.1", "127.0.0.1", {"host": "[::1"}, False),
        ("127.0.0.1", "127.0.0.1", {"host": "rebound.example.org"}, False),
        ("127.0.0.1", "127.0.0.1", {**LOCAL, "via": "1.1 proxy"}, False),
        ("192.0.2.1", "127.0.0.1", LOCAL, False),
        ("127.0.0.1", "192.0.2.1", LOCAL, False),
        ("/run/td3.sock", None, LOCAL, False),
        (None, None, LOCAL, False),
    ],
)
def test_who_is_local(
    server: str | None, client: str | None, headers: dict[str, str], local: bool
) -> None:
    scope: Scope = {
        "server": (server, 8000) if server else None,
        "client": (client, 5) if client else None,
    }
    assert is_local(scope, Headers(headers)) is local


def test_the_first_key_closes_a_running_service(service: Service) -> None:
    now = [0.0]
    authenticator = Authenticator(service.settings, service.store, clock=lambda: now[0])

    def needed() -> bool:
        return asyncio.run(authenticator.is_key_required("/jobs"))

    assert not needed()
    service.key()
    assert not needed(), "looked for at most once a second"
    now[0] += KEYS_LOOKUP_SECONDS
    assert needed()


def test_without_the_secret_no_key_is_good(service: Service, tmp_path: Path) -> None:
    key = service.key()
    elsewhere = service.settings.model_copy(update={"data_dir": tmp_path / "elsewhere"})
    with pytest.raises(Exception, match="no such key"):
        asyncio.run(Authenticator(elsewhere, service.store).caller_of_key(key))


def test_the_client_sends_its_key(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    key = service.key("read")
    with Client(service.url, api_key=key) as client:
        assert list(client.jobs()) == []
    monkeypatch.setenv("TD3_API_KEY", key)
    with Client(service.url) as client:
        assert list(client.jobs()) == []
    with Client(service.url, api_key="") as client, pytest.raises(ServiceError) as refused:
        list(client.jobs())
    assert refused.value.problem.code == "key_required"


def test_answers_with_keys_are_not_kept(service: Service) -> None:
    answer: httpx.Response = service.http.post(
        "/keys", json={"name": "x"}, headers=bearer(service.key("admin"))
    )
    assert answer.headers["cache-control"] == "no-store"
