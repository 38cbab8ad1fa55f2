"""What a tenant may use: decided once for requests at once, told with a code and Retry-After."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from app.http.rate_limit import RateLimiter
from app.main import create_app
from app.settings import Settings, SettingsError
from app.store import datasets, jobs, tenants
from app.store.engine import Store
from app.store.models import DEFAULT_TENANT
from app.store.quotas import QuotaExceededError, take_bytes
from tests.app.http.kit import LOG, Service, bearer, problem, running, settings_for

AT_ONCE = 8


def at_once(work: Callable[[int], object]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(work, range(AT_ONCE)))


def jobs_at_once(service: Service, request: dict[str, str], taken: int) -> list[httpx.Response]:
    """As many requests at once as there are threads, of which so many get their job."""
    answers = list[httpx.Response]()
    at_once(lambda _: answers.append(service.http.post("/jobs", json=request)))
    expected = [202] * taken + [429] * (AT_ONCE - taken)
    assert sorted(answer.status_code for answer in answers) == expected
    return answers


def test_the_last_place_for_a_job_is_taken_once(
    database_url: str, broker_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, broker_url, tmp_path, quotas={"active_jobs": 3})
    with running(settings) as service:
        request = {"dataset_id": service.dataset()}
        answers = jobs_at_once(service, request, taken=3)
        refused = next(answer for answer in answers if answer.status_code == 429)
        problem(refused, 429, "too_many_active_jobs")
        assert int(refused.headers["retry-after"]) > 0
        usage = service.http.get("/usage").json()
        assert (usage["active_jobs"], usage["jobs"]) == (3, {"queued": 3})
        assert usage["quotas"]["active_jobs"] == 3

        # Another tenant's jobs do not count, and one that is over leaves its place.
        other = bearer(service.key("write", "other"))
        theirs = {"dataset_id": service.dataset("other")}
        assert service.http.post("/jobs", json=theirs, headers=other).status_code == 202
        key = bearer(service.key())
        job_id = next(answer for answer in answers if answer.status_code == 202).json()["id"]
        service.http.post(f"/jobs/{job_id}/cancel", headers=key)
        assert service.http.post("/jobs", json=request, headers=key).status_code == 202


def test_jobs_that_are_over_count_until_they_are_deleted(
    database_url: str, broker_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, broker_url, tmp_path, quotas={"kept_jobs": 2})
    with running(settings) as service:
        request = {"dataset_id": service.dataset()}
        answers = jobs_at_once(service, request, taken=2)
        first, second = (a.json()["id"] for a in answers if a.status_code == 202)
        for job_id in (first, second):
            service.http.post(f"/jobs/{job_id}/cancel").raise_for_status()
        usage = service.http.get("/usage").json()
        assert (usage["active_jobs"], usage["kept_jobs"]) == (0, 2)
        assert usage["quotas"]["kept_jobs"] == 2
        for path, body in (("/jobs", request), (f"/jobs/{first}/retry", None)):
            refused = service.http.post(path, json=body)
            problem(refused, 429, "too_many_jobs")
            assert int(refused.headers["retry-after"]) > 0

        # Another tenant's jobs do not count, and one that is deleted leaves its place.
        other = bearer(service.key("write", "other"))
        theirs = {"dataset_id": service.dataset("other")}
        assert service.http.post("/jobs", json=theirs, headers=other).status_code == 202
        key = bearer(service.key())
        service.http.delete(f"/jobs/{second}", headers=key).raise_for_status()
        assert service.http.post("/jobs", json=request, headers=key).status_code == 202


def test_the_last_bytes_are_taken_once(service_store: tuple[Store, str]) -> None:
    store, fingerprint = service_store
    size = len(b"a normalised log")
    settings = Settings(quotas={"stored_bytes": 3 * size + 1})

    def add(number: int) -> None:
        with suppress(QuotaExceededError), store.write() as session:
            take_bytes(session, settings, DEFAULT_TENANT, size)
            datasets.create(
                session,
                tenant_id=DEFAULT_TENANT,
                name=f"log {number}",
                fingerprint=fingerprint,
                source_sha256=fingerprint,
                source_bytes=1,
                statistics={},
            )

    at_once(add)
    with store.read() as session:
        assert len(datasets.page(session, tenant_id=DEFAULT_TENANT, limit=99)[0]) == 3
        assert tenants.stored_bytes(session, DEFAULT_TENANT) == 3 * size


@pytest.fixture
def service_store(each_service: Service) -> tuple[Store, str]:
    """A store of each kind that has a blob, and no dataset."""
    dataset_id = each_service.dataset("other")
    with each_service.store.read() as session:
        row = datasets.get(session, dataset_id, tenant_id="other")
    assert row is not None
    assert row.fingerprint is not None
    return each_service.store, row.fingerprint


def test_deleted_datasets_are_not_counted(each_service: Service) -> None:
    kept, gone = each_service.dataset(), each_service.dataset()
    assert each_service.http.get("/usage").json()["datasets"] == 2
    each_service.http.delete(f"/datasets/{gone}").raise_for_status()
    assert each_service.http.get("/usage").json()["datasets"] == 1
    assert each_service.http.get(f"/datasets/{kept}").status_code == 200


def test_stored_bytes(each_service: Service, tmp_path: Path) -> None:
    """Datasets, checkpoints and artifacts count; without room nothing more is taken."""
    service = each_service
    job_id = service.new_job()["id"]
    dataset_bytes = service.http.get("/usage").json()["stored_bytes"]
    lease = service.claim(job_id)
    with service.store.write() as session:
        row = jobs.held(session, lease)
        assert row is not None
        dataset = datasets.get(session, row.dataset_id, tenant_id=DEFAULT_TENANT)
        assert dataset is not None
        assert dataset.fingerprint is not None
        jobs.set_checkpoint(session, lease, dataset.fingerprint, row.created_at)
    assert service.http.get("/usage").json()["stored_bytes"] == 2 * dataset_bytes
    service.succeed(lease, tmp_path)
    artifacts = sum(a["bytes"] for a in service.http.get(f"/jobs/{job_id}").json()["artifacts"])
    stored = service.http.get("/usage").json()["stored_bytes"]
    assert stored == dataset_bytes + artifacts

    with service.store.write() as session:
        tenants.set_overrides(session, DEFAULT_TENANT, {"stored_bytes": stored})
    problem(service.upload(), 429, "storage_full")
    request = {"dataset_id": service.dataset()}
    problem(service.http.post("/jobs", json=request), 429, "storage_full")
    with_file = service.http.post("/jobs", files={"file": ("log.csv", LOG)})
    problem(with_file, 429, "storage_full")
    assert service.uploads_in_flight() == []


def test_what_is_there_already_needs_no_room(each_service: Service) -> None:
    service = each_service
    first = service.upload().json()
    stored = service.http.get("/usage").json()["stored_bytes"]
    with service.store.write() as session:  # not full, but nothing else of this size has room
        tenants.set_overrides(session, DEFAULT_TENANT, {"stored_bytes": stored + 1})
    again = service.upload()
    assert again.status_code == 201, again.text
    assert again.json()["id"] == first["id"]
    problem(service.upload(name="another"), 429, "storage_full")
    assert service.http.get("/usage").json()["stored_bytes"] == stored


def test_size_and_rows_of_a_file(service: Service) -> None:
    for quota, status, code in [
        ({"upload_bytes": len(LOG) - 1}, 413, "too_large"),
        ({"rows": 199}, 422, "too_many_rows"),
        ({"upload_bytes": len(LOG), "rows": 200}, 201, None),
    ]:
        with service.store.write() as session:
            tenants.set_overrides(session, DEFAULT_TENANT, quota)
        answer = service.upload()
        assert answer.status_code == status, answer.text
        if code is not None:
            problem(answer, status, code)


@pytest.mark.parametrize("quota", ["upload_bytes", "rows"])
def test_a_quota_of_nothing_refuses_all_files(service: Service, quota: str) -> None:
    with service.store.write() as session:
        tenants.set_overrides(session, DEFAULT_TENANT, {quota: 0})
    files = {"file": ("log.csv", LOG)}
    raw = {"content-type": "text/csv"}
    for answer in (
        service.upload(),
        service.upload(""),
        service.http.post("/datasets", content=LOG, headers=raw),
        service.http.post("/jobs", files=files),
    ):
        assert problem(answer, 413, "too_large")["param"] == "file"
    assert service.uploads_in_flight() == []
    service.new_job()  # of what is there already


def test_requests_with_a_key_are_counted_for_the_tenant(service: Service) -> None:
    first, second = (bearer(service.key("read", "busy")) for _ in range(2))
    with service.store.write() as session:
        tenants.set_overrides(session, "busy", {"requests_per_minute": 3})
    answers = [
        service.http.get("/jobs", headers=headers) for headers in (first, second, first, second)
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    problem(answers[-1], 429, "rate_limited")
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    quiet = bearer(service.key("read", "quiet"))
    assert service.http.get("/jobs", headers=quiet).status_code == 200


def test_without_the_broker_each_process_counts_for_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limiter = RateLimiter(f"redis+socket://{tmp_path}/nobody.sock")
    waits = [wait for _ in range(4) for wait in limiter.wait_for([("a", 3)])]
    assert waits[:3] == [0, 0, 0]
    assert 1 <= waits[3] <= 60
    assert limiter.wait_for([("b", 3)]) == [0]
    assert caplog.text.count("this process alone") == 1


def test_requests_counted_together_count_one_by_one(broker_url: str) -> None:
    limiter = RateLimiter(broker_url)
    assert limiter.wait_for([("a", 5)] * 2) == [0, 0]
    asked = [("a", 5), ("b", 1), ("a", 5), ("a", 5), ("b", 1), ("a", 5)]
    waits = limiter.wait_for(asked)
    assert [wait == 0 for wait in waits] == [True, True, True, True, False, False]
    assert all(1 <= wait <= 60 for wait in waits if wait)


def test_wrong_quotas_are_told_at_the_start() -> None:
    for wrong in ({"active_jobs": -1}, {"jobs": 3}, {"kept_jobs": 10**30}):
        with pytest.raises(SettingsError, match=f"TD3_QUOTAS: {next(iter(wrong))}: "):
            create_app(Settings(quotas=wrong))
