"""Every route of the OpenAPI document: what it asks of a key, and that it keeps tenants apart.

Generated from the document. A route that this file cannot exercise fails its tests, until somebody
says here what a request to it looks like.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from app.http.auth import PUBLIC_PATHS
from app.main import create_app
from app.settings import Settings
from app.store.models import (
    DEFAULT_TENANT,
    ApiKey,
    Artifact,
    Base,
    Dataset,
    IdempotencyKey,
    Job,
    JobEvent,
    WebhookDelivery,
)
from tests.app.http.kit import LOG, Service, bearer, problem

DOCUMENT = create_app(Settings()).openapi()
# Besides these, nothing is served to somebody unknown.
HEALTH = {"getHealth", "getReadiness"}
# What concerns all tenants: for keys of the default one.
OPERATOR = {"getMetrics"}
COUNTS = {"getUsage"}
ADMIN = {"createKey", "listKeys", "getKey", "revokeKey"}
# What is refused with 409 for the state that its rows are in here is exercised well enough.
GOOD = (*range(200, 300), 304, 409)


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    id: str
    method: str
    path: str
    parameters: frozenset[str]

    @property
    def lists(self) -> bool:
        return self.method == "GET" and not self.parameters


@dataclass
class Owned:
    """What a tenant has: values for the parameters of paths."""

    tenant_id: str
    key: str
    values: dict[str, str]

    @property
    def ids(self) -> list[str]:
        return [value for name, value in self.values.items() if name.endswith("_id")]


Request = Callable[[Owned], dict[str, Any]]
# What a request needs besides its path. Everything that makes a row is here.
BODIES: dict[str, Request] = {
    "createDataset": lambda _: {"files": {"file": ("log.csv", LOG)}},
    "createJob": lambda owned: {"json": {"dataset_id": owned.values["dataset_id"]}},
    "createKey": lambda _: {"json": {"name": "another"}},
}


def operations() -> list[Operation]:
    return [
        Operation(
            details["operationId"],
            method.upper(),
            path,
            frozenset(p["name"] for p in details.get("parameters", []) if p["in"] == "path"),
        )
        for path, methods in DOCUMENT["paths"].items()
        for method, details in methods.items()
    ]


PROTECTED = [operation for operation in operations() if operation.id not in HEALTH]


def send(service: Service, operation: Operation, owned: Owned | None, key: str) -> httpx.Response:
    """The operation on the rows of `owned` (without: on no rows that there are), with this key."""
    values = owned.values if owned else dict.fromkeys(operation.parameters, "x")
    missing = operation.parameters - values.keys()
    assert not missing, f"{operation.id}: say in `owned_by` what {missing} may be"
    body = BODIES.get(operation.id)
    more = body(owned) if body and owned else {}
    path = operation.path.format(**values)
    return service.http.request(operation.method, path, headers=bearer(key), **more)


def owned_by(service: Service, tenant_id: str, folder: Path) -> Owned:
    """A tenant with a job that has ended, on a dataset, and a key."""
    key = service.key("admin", tenant_id)
    dataset_id = service.dataset(tenant_id)
    webhook = {"url": "https://example.com/", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
    answer = service.http.post(
        "/jobs",
        json={"dataset_id": dataset_id, "webhook": webhook},
        headers={**bearer(key), "idempotency-key": "k"},
    )
    job_id = answer.json()["id"]
    service.succeed(service.claim(job_id), folder)
    values = {
        "dataset_id": dataset_id,
        "job_id": job_id,
        "key_id": f"key_{service.key('read', tenant_id).split('_')[1]}",
        "name": "manifest.json",
    }
    return Owned(tenant_id, key, values)


def rows_of(service: Service, tenant_id: str) -> list[tuple[Any, ...]]:
    """Every row of a tenant, less what a request with its own key may change."""
    found: list[tuple[Any, ...]] = []
    with service.store.read() as session:
        for model in (Dataset, Job, ApiKey, IdempotencyKey, JobEvent, Artifact, WebhookDelivery):
            query = select(model.__table__)
            if model in (JobEvent, Artifact, WebhookDelivery):
                query = query.join(Job).where(Job.tenant_id == tenant_id)
            else:
                query = query.where(model.__table__.c.tenant_id == tenant_id)
            found += [
                tuple(str(value) for name, value in row._mapping.items() if name != "last_used_at")
                for row in session.execute(query)
            ]
    return sorted(found)


@contextmanager
def nothing_changes_for(service: Service, owned: Owned, what: str) -> Iterator[None]:
    before = rows_of(service, owned.tenant_id)
    yield
    assert rows_of(service, owned.tenant_id) == before, what


def test_only_health_is_public() -> None:
    public = {operation.id for operation in operations() if operation.path in PUBLIC_PATHS}
    assert public == HEALTH
    for methods in DOCUMENT["paths"].values():
        for details in methods.values():
            is_public = details["operationId"] in HEALTH
            assert (details.get("security") == []) is is_public
            assert ("401" in details["responses"]) is not is_public


def test_every_table_with_rows_of_tenants_is_watched() -> None:
    """A new table is somebody's: say here whose, and watch it above."""
    watched = {"datasets", "jobs", "api_keys", "idempotency_keys"}
    watched |= {"job_events", "artifacts", "webhook_deliveries"}
    nobodys = {"tenants", "blobs", "blob_chunks"}
    assert set(Base.metadata.tables) == watched | nobodys


def test_every_route_asks_for_a_key_of_enough_scope(service: Service) -> None:
    read, write = service.key("read"), service.key("write")
    for operation in PROTECTED:
        values = dict.fromkeys(operation.parameters, "x")
        answer = service.http.request(operation.method, operation.path.format(**values))
        if operation.method == "HEAD":
            assert answer.status_code == 401
        else:
            problem(answer, 401, "key_required")
        assert answer.headers["www-authenticate"].startswith("Bearer"), operation.id
        too_small = [read, write] if operation.id in ADMIN else [read]
        if operation.method in ("GET", "HEAD") and operation.id not in ADMIN:
            too_small = []
        for key in too_small:
            answer = send(service, operation, None, key)
            assert answer.status_code == 403, operation.id
            assert answer.json()["code"] == "insufficient_scope"


def test_every_route_keeps_tenants_apart(each_service: Service, tmp_path: Path) -> None:
    service = each_service
    for operation in PROTECTED:
        a = owned_by(service, f"a-{operation.id.lower()}", tmp_path)
        b = owned_by(service, f"b-{operation.id.lower()}", tmp_path)
        with nothing_changes_for(service, a, operation.id):
            answer = send(service, operation, a, b.key)
        if operation.id in OPERATOR:
            assert problem(answer, 403, "insufficient_scope")
            assert send(service, operation, a, service.key("read")).status_code == 200
            continue
        if operation.id in COUNTS:
            body = answer.json()
            assert (body["tenant"], body["datasets"]) == (b.tenant_id, 1)
            assert body["jobs"] == {"succeeded": 1}
            continue
        if operation.parameters:
            assert answer.status_code == 404, (operation.id, answer.text)
        elif operation.lists:
            assert not [one for one in a.ids if one in answer.text], operation.id
            assert [one for one in b.ids if one in answer.text], operation.id
        elif operation.id == "createJob":
            assert problem(answer, 422, "dataset_not_found")["param"] == "dataset_id"
        else:
            assert operation.id in BODIES, f"{operation.id}: say in BODIES what to send"
            assert answer.status_code in GOOD, (operation.id, answer.text)
        # The same request is good where the rows are one's own, so that is why it was refused.
        with nothing_changes_for(service, b, operation.id):
            own = send(service, operation, a, a.key)
        assert own.status_code in GOOD, (operation.id, own.text)


def test_a_404_does_not_tell_whether_somebody_else_has_it(service: Service, tmp_path: Path) -> None:
    a = owned_by(service, "a", tmp_path)
    b = service.key("admin", "b")
    for operation in PROTECTED:
        if not operation.parameters or operation.method == "HEAD":
            continue
        theirs = send(service, operation, a, b).json()
        values = {name: f"{value[:-1]}_" for name, value in a.values.items()}
        nobodys = send(service, operation, Owned("b", b, values), b).json()
        for answer in (theirs, nobodys):
            del answer["request_id"]
            for value in (*a.values.values(), *values.values()):
                answer["detail"] = answer["detail"].replace(value, "ID")
        assert theirs == nobodys, operation.id


def test_the_same_log_of_two_tenants_shows_to_neither(
    each_service: Service, tmp_path: Path
) -> None:
    """Stored once below the surface; each has a dataset of its own, and cannot tell."""
    answers = []
    for tenant_id in ("a", "b"):
        headers = bearer(each_service.key("write", tenant_id))
        answer = each_service.http.post(
            "/datasets", files={"file": ("log.csv", LOG)}, headers=headers
        )
        body = answer.json()
        answers.append((answer.status_code, {**body, "id": None, "created_at": None}))
        listed = each_service.http.get("/datasets", headers=headers).json()["data"]
        assert [one["id"] for one in listed] == [body["id"]]
    assert answers[0] == answers[1]


def test_keyless_rows_are_those_of_the_default_tenant(service: Service) -> None:
    job = service.new_job()["id"]
    for tenant_id, status in ((DEFAULT_TENANT, 200), ("other", 404)):
        headers = bearer(service.key("read", tenant_id))
        assert service.http.get(f"/jobs/{job}", headers=headers).status_code == status


@pytest.mark.parametrize("path", sorted(PUBLIC_PATHS))
def test_public_paths_need_no_key(service: Service, path: str) -> None:
    service.key()
    assert service.http.get(path).status_code == 200
