"""Every error is a problem: one shape, a stable code, the request's id, and no leak."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.http.problems import PROBLEM_CODES
from app.main import app
from app.store.engine import open_store
from tests.app.http.kit import Service, problem, running, settings_for

JSON = {"content-type": "application/json"}
NOT_FOUND = [
    ("GET", "/nothing", "not_found"),
    ("GET", "/jobs/", "not_found"),
    ("GET", "/datasets/ds_none", "dataset_not_found"),
    ("GET", "/datasets/%00", "dataset_not_found"),
    ("GET", "/jobs/job_none", "job_not_found"),
    ("GET", "/jobs/%00", "job_not_found"),
    ("GET", "/jobs/job_none/events", "job_not_found"),
    ("GET", "/jobs/job_none/summary", "job_not_found"),
    ("GET", "/jobs/job_none/artifacts", "job_not_found"),
    ("GET", "/jobs/job_none/artifacts/x", "job_not_found"),
    ("POST", "/jobs/job_none/cancel", "job_not_found"),
    ("POST", "/jobs/job_none/retry", "job_not_found"),
    ("GET", "/jobs/job_none/metrics", "job_not_found"),
    ("GET", "/jobs/job_none/deliveries", "job_not_found"),
    ("DELETE", "/jobs/job_none", "job_not_found"),
    ("DELETE", "/jobs/%00", "job_not_found"),
    ("DELETE", "/datasets/ds_none", "dataset_not_found"),
    ("DELETE", "/datasets/%00", "dataset_not_found"),
]
UNKNOWN_QUERY = [
    re.sub(r"{\w+}", "x", path)
    for path, methods in app.openapi()["paths"].items()
    if "get" in methods
]


def test_what_is_not_there(each_service: Service) -> None:
    for method, path, code in NOT_FOUND:
        problem(each_service.http.request(method, path), 404, code)


def test_method_that_is_not_possible(service: Service) -> None:
    answer = service.http.delete("/jobs")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"]


@pytest.mark.parametrize("path", UNKNOWN_QUERY)
def test_unknown_query_parameter(service: Service, path: str) -> None:
    headers = {"authorization": f"Bearer {service.key('admin')}"}
    answer = service.http.get(path, params={"nonsense": 1}, headers=headers)
    body = problem(answer, 422, "validation_error")
    assert body["param"] == "nonsense"


def test_query_parameter_that_is_there_twice(service: Service) -> None:
    """Whoever asks for two states would get those of the second only."""
    answer = service.http.get("/jobs?status=queued&limit=5&status=running")
    body = problem(answer, 422, "validation_error")
    assert (body["param"], body["errors"][0]["code"]) == ("status", "duplicate")


def test_all_fields_at_fault_are_named(each_service: Service) -> None:
    answer = each_service.http.get("/jobs", params={"limit": 0, "status": "odd", "after": "\0"})
    body = problem(answer, 422, "validation_error")
    assert [error["path"] for error in body["errors"]] == ["limit", "after", "status"]
    assert body["param"] == "limit"


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"{", JSON, 400, "invalid_json"),
        (b"\xff", JSON, 400, "invalid_json"),
        (b"[" * 100_000, JSON, 400, "invalid_json"),
        (b"[]", JSON, 422, "validation_error"),
        (b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (b"{}", {}, 415, "unsupported_media_type"),
        (b" " * 300_000, JSON, 413, "too_large"),
        (b"x", {"content-type": "multipart/form-data"}, 415, "unsupported_media_type"),
        (b"x", {"content-type": "multipart/form-data; boundary=b"}, 400, "bad_multipart"),
        (b"--b\r\n", {"content-type": "multipart/form-data; boundary=b"}, 400, "bad_multipart"),
    ],
)
def test_bodies_that_cannot_be_read(
    service: Service, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    problem(service.http.post("/jobs", content=content, headers=headers), status, code)


def test_request_id_of_the_client_is_kept_when_it_is_sane(service: Service) -> None:
    def given_back(request_id: str) -> str:
        answer = service.http.get("/nothing", headers={"x-request-id": request_id})
        return str(problem(answer, 404, "not_found")["request_id"])

    assert given_back("trace-1:a.b_c") == "trace-1:a.b_c"
    for odd in ("", "a b", "x" * 200, "<script>"):
        assert given_back(odd) != odd
    assert (
        service.http.get("/healthz", headers={"x-request-id": "q1"}).headers["x-request-id"] == "q1"
    )


def test_unexpected_errors_are_logged_and_do_not_leak(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr("app.store.job_reads.page", broken)
    with caplog.at_level(logging.ERROR):
        answer = service.http.get("/jobs", headers={"x-request-id": "q2"})
    body = problem(answer, 500, "internal_error")
    assert body["request_id"] == "q2"
    assert "swordfish" not in answer.text
    assert "swordfish" in caplog.text
    assert "q2" in caplog.text


def test_a_database_that_is_away_is_worth_another_try(
    broker_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = "postgresql://td3:swordfish@127.0.0.1:1/td3"
    with running(settings_for(url, broker_url, tmp_path)) as service:
        answer = service.http.get("/jobs/job_1")
    problem(answer, 503, "database_unavailable")
    assert answer.headers["retry-after"] == "5"
    assert "swordfish" not in answer.text + caplog.text


def test_a_request_waits_for_a_connection_but_not_for_ever(
    database_url: str, broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where everything else of the process takes longer than it should."""
    pool = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.1}
    monkeypatch.setattr("app.store.engine._POOL", pool)
    store = open_store(database_url)
    monkeypatch.setattr("app.main.open_store", lambda _: store)
    with running(settings_for(database_url, broker_url, tmp_path)) as service:
        with store.read() as session:
            session.execute(text("SELECT 1"))
            problem(service.http.get("/jobs"), 503, "database_unavailable")
        service.http.get("/jobs").raise_for_status()


def test_the_document_names_the_problems_of_each_route(service: Service) -> None:
    document = service.http.get("/openapi.json").json()
    operations = [
        operation for methods in document["paths"].values() for operation in methods.values()
    ]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    for operation in operations:
        assert operation["tags"]
        assert operation["description"]
        for status in ("422", "500"):
            content = operation["responses"][status]["content"]
            reference = content["application/problem+json"]["schema"]["$ref"]
            assert reference == "#/components/schemas/Problem"
    schemas = document["components"]["schemas"]
    assert {"Problem", "DistillConfig", "JobRequest", "Job"} <= set(schemas)
    assert not {"HTTPValidationError", "ValidationError"} & set(schemas)
    for reference in _references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas
    assert service.http.get("/docs").status_code == 200


def test_the_documentation_has_every_code() -> None:
    """Both ways: no code without an explanation, none explained that cannot happen."""
    text = (Path(__file__).parents[3] / "docs" / "http-api.md").read_text()
    rows = re.findall(r"^\| [45]\S\S \| (.+?) \| .+ \|$", text, re.MULTILINE)
    assert {code for row in rows for code in re.findall(r"`(\w+)`", row)} == PROBLEM_CODES


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in _references(value)]
    if isinstance(node, list):
        return [found for value in node for found in _references(value)]
    return []
