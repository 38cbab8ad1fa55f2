"""What operators see: logs that tie a request to its job, and metrics that Prometheus can read."""

import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from app.logs import JsonFormatter
from app.store import jobs
from app.store.models import Job
from tests.app.http.kit import Service, running, settings_for, wait_for
from tests.promtool import check_metrics


class Samples:
    """The answer of a scrape, as Prometheus understands it."""

    def __init__(self, service: Service) -> None:
        answer = service.http.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
        self.text = answer.text
        self.families = {f.name: f for f in text_string_to_metric_families(answer.text)}

    def value(self, name: str, **labels: str) -> float | None:
        """Of the one sample with these labels; None: there is no such sample."""
        found = [
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        ]
        assert len(found) <= 1
        return found[0] if found else None


def test_requests_are_counted_by_template_method_and_status(service: Service) -> None:
    job = service.new_job()
    service.http.get(f"/jobs/{job['id']}")
    service.http.get("/jobs/job_none")
    service.http.get("/nowhere/at/all")
    service.http.request("BREW", "/jobs")

    def counted() -> Samples | None:  # a request is counted just after its answer has gone out
        samples = Samples(service)
        done = samples.value("td3_http_requests_total", method="other", route="/jobs", status="405")
        return samples if done else None

    samples = wait_for(counted)
    got: dict[str, str] = {"method": "GET", "route": "/jobs/{job_id}"}
    assert samples.value("td3_http_requests_total", **got, status="200") == 1
    assert samples.value("td3_http_requests_total", **got, status="404") == 1
    assert samples.value("td3_http_request_duration_seconds_count", **got) == 2
    assert (
        samples.value("td3_http_requests_total", method="GET", route="unmatched", status="404") == 1
    )
    assert job["id"] not in samples.text
    assert samples.value("process_resident_memory_bytes")


def test_received_bytes_are_counted(service: Service) -> None:
    content = b"no log" * 100_000
    answer = service.upload(content)
    assert answer.status_code == 422
    sent = float(answer.request.headers["content-length"])
    labels = {"method": "POST", "route": "/datasets"}
    assert wait_for(lambda: Samples(service).value("td3_http_received_bytes_total", **labels)) == (
        sent
    )


def test_the_state_of_the_store_is_read_at_the_scrape(each_service: Service) -> None:
    service = each_service
    empty = Samples(service)
    assert empty.value("td3_database_up") == 1
    assert empty.value("td3_jobs", state="failed") == 0
    assert empty.value("td3_queue_oldest_age_seconds") == 0
    waiting, running_, fresh = (service.new_job()["id"] for _ in range(3))
    lease = service.claim(running_)
    service.progress(lease, 1)
    service.claim(fresh)
    now = datetime.now(UTC)
    with service.store.write() as session:
        session.execute(
            update(Job).where(Job.id == waiting).values(updated_at=now - timedelta(minutes=5))
        )
        jobs.renew(session, lease, lease_for=timedelta(seconds=-90), now=now)
    samples = Samples(service)
    assert samples.value("td3_jobs", state="queued") == 1
    assert samples.value("td3_jobs", state="running") == 2
    assert samples.value("td3_jobs_held", phase="distilling") == 1
    assert samples.value("td3_jobs_held", phase="none") == 1
    assert samples.value("td3_queue_oldest_age_seconds") == pytest.approx(300, abs=60)
    assert samples.value("td3_lease_overdue_seconds") == pytest.approx(90, abs=60)


def test_a_database_that_does_not_answer_is_a_metric(broker_url: str, tmp_path: Path) -> None:
    settings = settings_for("postgresql://td3@127.0.0.1:1/td3", broker_url, tmp_path)
    with running(settings) as service:
        samples = Samples(service)
        assert samples.value("td3_database_up") == 0
        assert "td3_jobs" not in samples.families


def test_promtool_finds_nothing_to_complain_about(service: Service) -> None:
    service.new_job()
    check_metrics(Samples(service).text)


def test_each_request_is_logged_with_its_id(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    with caplog.at_level(logging.INFO, logger="app.access"):
        job = service.new_job()
        service.http.get(f"/jobs/{job['id']}", headers={"x-request-id": "r-7"})
        service.http.get("/healthz")
        entry: dict[str, Any] = wait_for(lambda: _access(caplog).get("r-7"))
    assert entry["message"] == f"GET /jobs/{job['id']}"
    assert entry["level"] == "INFO"
    assert (entry["route"], entry["status"]) == ("/jobs/{job_id}", 200)
    assert 0 < entry["seconds"] < 10
    assert not any("healthz" in record.message for record in caplog.records)


def _access(caplog: pytest.LogCaptureFixture) -> dict[str, dict[str, Any]]:
    """Records of requests by request id."""
    entries = [json.loads(line) for line in caplog.text.splitlines() if line.startswith("{")]
    return {e["request_id"]: e for e in entries if e["logger"] == "app.access"}


def test_a_job_keeps_the_id_of_its_request(each_service: Service) -> None:
    request = {"dataset_id": each_service.dataset()}
    answer = each_service.http.post("/jobs", json=request, headers={"x-request-id": "r-8"})
    with each_service.store.read() as session:
        job = session.get(Job, answer.json()["id"])
    assert job is not None
    assert job.request_id == "r-8"
    assert each_service.claim(job.id).request_id == "r-8"
