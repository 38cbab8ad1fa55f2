"""What a job made, downloaded."""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.bundle import Member, stream_zip
from app.store import jobs
from tests.app.api.conftest import BUNDLE, Service
from tests.app.api.test_errors import problem


@pytest.fixture
def job_id(each_service: Service, tmp_path: Path) -> str:
    """A job that succeeded."""
    job_id: str = each_service.new_job()["id"]
    each_service.succeed(each_service.claim(job_id), tmp_path)
    return job_id


def test_each_artifact(each_service: Service, job_id: str) -> None:
    job = each_service.http.get(f"/jobs/{job_id}").json()
    assert job["status"] == "succeeded"
    assert {artifact["name"] for artifact in job["artifacts"]} == set(BUNDLE)
    for artifact in job["artifacts"]:
        media_type, content = BUNDLE[artifact["name"]]
        answer = each_service.http.get(artifact["href"])
        assert answer.content == content
        assert answer.headers["content-type"] == media_type
        assert answer.headers["content-length"] == str(len(content)) == str(artifact["bytes"])
        assert answer.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
        assert answer.headers["content-disposition"].startswith("attachment;")
        assert answer.headers["x-content-type-options"] == "nosniff"
        headers = {"if-none-match": answer.headers["etag"]}
        assert each_service.http.get(artifact["href"], headers=headers).status_code == 304
    for name in ("other", "%00", "..%2f..%2fetc%2fpasswd"):
        answer = each_service.http.get(f"/jobs/{job_id}/artifacts/{name}")
        assert answer.status_code == 404


def test_summary_is_the_same_zip_each_time(each_service: Service, job_id: str) -> None:
    answer = each_service.http.get(f"/jobs/{job_id}/summary")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == f"attachment; filename*=UTF-8''{job_id}.zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {
            name: content for name, (_, content) in BUNDLE.items()
        }
        for entry in archive.infolist():
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert entry.compress_type == zipfile.ZIP_STORED
    again = each_service.http.get(f"/jobs/{job_id}/summary")
    assert again.content == answer.content
    assert again.headers["etag"] == answer.headers["etag"]
    headers = {"if-none-match": answer.headers["etag"]}
    assert each_service.http.get(f"/jobs/{job_id}/summary", headers=headers).status_code == 304


def test_no_summary_before_success(each_service: Service) -> None:
    job_id = each_service.new_job()["id"]
    problem(each_service.http.get(f"/jobs/{job_id}/summary"), 409, "job_not_succeeded")
    answer = each_service.http.get(f"/jobs/{job_id}/artifacts/manifest.json")
    problem(answer, 409, "job_not_succeeded")


def test_damaged_store_is_told_before_the_first_byte(service: Service, tmp_path: Path) -> None:
    job_id = service.new_job()["id"]
    lease = service.claim(job_id)
    service.succeed(lease, tmp_path)
    with service.store.write() as session:
        job = jobs.get(session, job_id)
        assert job is not None
        blob = next(one.sha256 for one in job.artifacts if one.name == "items.parquet")
        connection = session.connection()
        connection.exec_driver_sql("UPDATE blobs SET complete = 0 WHERE sha256 = ?", (blob,))
    problem(service.http.get(f"/jobs/{job_id}/summary"), 500, "internal_error")


def test_zip_is_made_while_it_is_sent() -> None:
    """Nothing is held: what went in is out before the next chunk is asked for."""
    chunk = bytes(1024 * 1024)
    asked = 0

    def reader(_sha256: str) -> Iterator[bytes]:
        nonlocal asked
        for _ in range(64):
            asked += 1
            yield chunk

    sent = 0
    for piece in stream_zip([Member("a", 64 * len(chunk), "x"), Member("b", 1, "y")], reader):
        sent += len(piece)
        assert sent >= asked * len(chunk)
    assert asked == 128
