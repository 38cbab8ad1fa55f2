"""What a job made, downloaded."""

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete

from app.blobs.sql import CHUNK_BYTES
from app.http.summary_zip import Member, stream_zip
from app.store import job_reads
from app.store.models import DEFAULT_TENANT, BlobChunk
from tests.app.http.kit import BUNDLE, Service, problem, running, settings_for
from tests.effort import effort


@pytest.fixture
def job_id(each_service: Service, tmp_path: Path) -> str:
    """A job that succeeded."""
    job_id: str = each_service.new_job()["id"]
    each_service.succeed(each_service.claim(job_id), tmp_path)
    return job_id


@pytest.fixture(scope="module")
def succeeded(
    sqlite_template: Path, broker_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, str]]:
    """A service over SQLite and a job of it that succeeded, for many examples."""
    folder = tmp_path_factory.mktemp("ranges")
    (folder / "td3.sqlite3").write_bytes(sqlite_template.read_bytes())
    settings = settings_for(f"sqlite:///{folder / 'td3.sqlite3'}", broker_server, folder)
    with running(settings) as service:
        job_id = service.new_job()["id"]
        service.succeed(service.claim(job_id), folder)
        yield service, job_id


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
    disposition = answer.headers["content-disposition"]
    assert disposition == f"attachment; filename=\"{job_id}.zip\"; filename*=UTF-8''{job_id}.zip"
    assert answer.headers["accept-ranges"] == "none"
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


LARGE = BUNDLE["summary.safetensors"][1]
LARGE_ETAG = f'"{hashlib.sha256(LARGE).hexdigest()}"'
SIZE = len(LARGE)


def get_large(service: Service, job_id: str, **headers: str) -> httpx.Response:
    """The artifact of more than two chunks."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return service.http.get(f"/jobs/{job_id}/artifacts/summary.safetensors", headers=named)


def test_ranges(each_service: Service, job_id: str) -> None:
    for asked, start, stop in [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        (f"bytes={CHUNK_BYTES - 1}-{CHUNK_BYTES}", CHUNK_BYTES - 1, CHUNK_BYTES + 1),
        (f"bytes={CHUNK_BYTES}-", CHUNK_BYTES, SIZE),
        (f"bytes=5-{SIZE + 9}", 5, SIZE),
        ("bytes=-7", SIZE - 7, SIZE),
        (f"bytes=-{SIZE + 1}", 0, SIZE),
        ("BYTES= 1-2", 1, 3),
    ]:
        answer = get_large(each_service, job_id, range=asked)
        assert answer.status_code == 206, asked
        assert answer.content == LARGE[start:stop], asked
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{SIZE}"
        assert answer.headers["content-length"] == str(stop - start)
        assert answer.headers["etag"] == LARGE_ETAG


def test_ranges_that_cannot_be(each_service: Service, job_id: str) -> None:
    for asked in (f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0", f"bytes={'9' * 30}-"):
        answer = get_large(each_service, job_id, range=asked)
        problem(answer, 416, "range_not_satisfiable")
        assert answer.headers["content-range"] == f"bytes */{SIZE}"
    # Another unit, malformed, or several: the whole, as if there were no such header.
    for ignored in ("lines=1-2", "bytes=5-2", "bytes=-", "bytes=x-y", "bytes=0-1,4-5", "bytes"):
        answer = get_large(each_service, job_id, range=ignored)
        assert (answer.status_code, len(answer.content)) == (200, SIZE)
        assert "content-range" not in answer.headers


def test_a_range_of_another_version_gives_the_whole(each_service: Service, job_id: str) -> None:
    def status(**headers: str) -> int:
        return get_large(each_service, job_id, range="bytes=1-2", **headers).status_code

    assert status(if_range=LARGE_ETAG) == 206
    assert status(if_range=f"W/{LARGE_ETAG}") == 200
    assert status(if_range='"other"') == 200
    assert status(if_range="Wed, 21 Oct 2015 07:28:00 GMT") == 200
    assert status(if_match=f'"other", {LARGE_ETAG}') == 206
    assert status(if_match="*") == 206
    assert status(if_none_match=LARGE_ETAG) == 304
    for other in ('"other"', f"W/{LARGE_ETAG}"):
        answer = get_large(each_service, job_id, if_match=other)
        problem(answer, 412, "precondition_failed")


def test_a_range_does_not_read_what_lies_before(each_service: Service, job_id: str) -> None:
    sha256 = LARGE_ETAG.strip('"')
    with each_service.store.write() as session:
        lost = (BlobChunk.sha256 == sha256) & (BlobChunk.position != 1)
        session.execute(delete(BlobChunk).where(lost))
    answer = get_large(each_service, job_id, range=f"bytes={CHUNK_BYTES}-{2 * CHUNK_BYTES - 1}")
    assert answer.content == LARGE[CHUNK_BYTES : 2 * CHUNK_BYTES]


def test_head_is_get_without_the_bytes(each_service: Service, job_id: str) -> None:
    for path in ("summary", "artifacts/summary.safetensors"):
        url = f"/jobs/{job_id}/{path}"
        got = each_service.http.get(url)
        head = each_service.http.head(url, headers={"range": "bytes=0-1"})
        assert (head.status_code, head.content) == (200, b"")
        ours = {"etag", "content-type", "content-disposition", "accept-ranges", "content-length"}
        assert {name: head.headers.get(name) for name in ours} == {
            name: got.headers.get(name) for name in ours
        }
        headers = {"if-none-match": got.headers["etag"]}
        assert each_service.http.head(url, headers=headers).status_code == 304
    assert each_service.http.head("/jobs/job_none/summary").status_code == 404


def test_list(each_service: Service, job_id: str) -> None:
    listed = each_service.http.get(f"/jobs/{job_id}/artifacts").json()
    job = each_service.http.get(f"/jobs/{job_id}").json()
    assert listed == {"data": job["artifacts"], "has_more": False}
    assert len(listed["data"]) == len(BUNDLE)
    queued = each_service.new_job()["id"]
    answer = each_service.http.get(f"/jobs/{queued}/artifacts")
    assert answer.json() == {"data": [], "has_more": False}
    problem(each_service.http.get("/jobs/job_none/artifacts"), 404, "job_not_found")


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
        job = job_reads.get(session, job_id, tenant_id=DEFAULT_TENANT)
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


_RANGE = st.one_of(
    st.text(st.sampled_from('0123456789-=, \tbytesxW"*'), max_size=30).map(str.strip),
    st.tuples(st.integers(0, 10**7) | st.none(), st.integers(0, 10**7) | st.none()).map(
        lambda ends: "bytes=" + "-".join("" if end is None else str(end) for end in ends)
    ),
)
_CONDITION = st.none() | st.sampled_from(["*", "ETAG", 'W/ETAG, "x"', '"x"', "x"]) | _RANGE


@given(
    method=st.sampled_from(["GET", "HEAD"]),
    range_=_RANGE,
    conditions=st.fixed_dictionaries(
        dict.fromkeys(("if-range", "if-match", "if-none-match"), _CONDITION)
    ),
)
@effort(150)
def test_no_range_or_condition_gets_wrong_bytes_or_a_5xx(
    succeeded: tuple[Service, str], method: str, range_: str, conditions: dict[str, str | None]
) -> None:
    service, job_id = succeeded
    name = "summary.safetensors"
    content = BUNDLE[name][1]
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    headers = {"range": range_}
    headers |= {k: v.replace("ETAG", etag) for k, v in conditions.items() if v is not None}
    answer = service.http.request(method, f"/jobs/{job_id}/artifacts/{name}", headers=headers)
    assert answer.status_code in (200, 206, 304, 412, 416)
    expected = b""
    if answer.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers["content-range"])
        assert found is not None
        first, last, size = (int(number) for number in found.groups())
        assert size == len(content)
        expected = content[first : last + 1]
        assert len(expected) == last + 1 - first > 0
    elif answer.status_code == 200:
        expected = content
    if answer.status_code < 300:
        assert answer.headers["content-length"] == str(len(expected))
    if answer.status_code < 400:
        assert answer.content == (expected if method == "GET" else b"")
