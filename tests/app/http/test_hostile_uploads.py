"""Uploads that are broken or meant to hurt, all the way through the API."""

import gzip
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from sqlalchemy import func, select

from app.http.normaliser import run_command
from app.store.models import Blob
from tests import lying_parquet
from tests.app.http.kit import LOG, Service, problem, running, settings_for

HEADER = "user_id,item_id,timestamp\n"
# What the file holds; the code, line and column that it is refused with.
REFUSED: dict[str, tuple[Callable[[], bytes], str, int | None, str | None]] = {
    "latin-1": (lambda: f"{LOG}M\xfcller,i,1\n".encode("latin-1"), "bad_encoding", 202, None),
    "NUL byte": (f"{LOG}u,\0,1\n".encode, "bad_encoding", 202, None),
    "header twice": ("user,item,time,item\n".encode, "duplicate_column", 1, "item"),
    "no time": (f"{LOG}u,i,NaN\n".encode, "bad_value", 202, "timestamp"),
    "half a gzip": (lambda: gzip.compress(LOG.encode())[:-9], "bad_format", None, None),
    "gzip bomb": (lambda: gzip.compress(zeros()), "too_large", None, None),
    "zstd bomb": (lambda: zstandard.compress(zeros()), "too_large", None, None),
    "nested type": (lambda: parquet(user=[["u"], ["v"]]), "bad_format", None, "user"),
    "null": (lambda: parquet(item=["i", None]), "bad_value", 2, "item"),
    "lying footer": (lambda: lying_parquet.claiming_rows(200), "bad_format", None, None),
}  # fmt: skip
# What the file holds; the first and last time that are read.
TAKEN: dict[str, tuple[Callable[[], bytes], float, float]] = {
    "mark and carriage returns": (lambda: f"\ufeff{LOG}".replace("\n", "\r\n").encode(), 0, 199),
    "negative": (f"{HEADER}u,i,-5\nu,j,{'9' * 25}\n".encode, -5, 1e25),
    "dates": (f"{HEADER}u,i,1970-01-02\nu,j,1970-01-03\n".encode, 86400, 172800),
    "moments with a zone": (
        lambda: parquet(time=pa.array([60, 120], pa.timestamp("s", "Asia/Tokyo"))), 60, 120,
    ),
}  # fmt: skip


def zeros() -> bytes:
    """20 MB that pack to almost nothing."""
    return (HEADER.replace("\n", ",note\n") + ("u,i,1," + "0" * 100_000 + "\n") * 200).encode()


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    good = {"user": ["u", "v"], "item": ["i", "j"], "time": [1, 2]}
    pq.write_table(pa.table(good | columns), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def tight(
    sqlite_template: Path, broker_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service whose readers have little memory; all tests of this module share it."""
    folder = tmp_path_factory.mktemp("tight")
    (folder / "td3.sqlite3").write_bytes(sqlite_template.read_bytes())
    url = f"sqlite:///{folder / 'td3.sqlite3'}"
    with running(
        settings_for(url, broker_server, folder, normalise_memory_bytes=512 * 2**20)
    ) as service:
        yield service


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_its_place(tight: Service, name: str) -> None:
    content, code, line, column = REFUSED[name]
    body = problem(tight.upload(content()), 422, code)
    assert (body.get("line"), body.get("column")) == (line, column)
    assert body["param"] == "file"
    assert tight.uploads_in_flight() == []


@pytest.fixture(scope="module")
def mortal(
    sqlite_template: Path, broker_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service whose reader ends itself when a file tells it to (`tests/mortal_reader.py`)."""
    folder = tmp_path_factory.mktemp("mortal")
    (folder / "td3.sqlite3").write_bytes(sqlite_template.read_bytes())
    url = f"sqlite:///{folder / 'td3.sqlite3'}"
    limits = {"normalise_memory_bytes": 512 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.http.normaliser.NORMALISER", ("-m", "tests.mortal_reader"))
        with running(settings_for(url, broker_server, folder, **limits)) as service:
            yield service


@pytest.mark.parametrize(
    ("told", "status", "code", "said"),
    [
        ("end by SIGSEGV", 422, "bad_format", "crashed the reader"),
        ("end by SIGABRT", 422, "bad_format", "crashed the reader"),
        ("end by SIGBUS", 422, "bad_format", "crashed the reader"),
        ("end by SIGKILL", 422, "too_large", "512 MiB"),
        ("eat", 422, "too_large", "512 MiB"),
        ("wait", 422, "too_large", "longer than 1 seconds"),
        ("full", 503, "disk_full", ""),
    ],
)
def test_a_reader_that_dies_costs_one_file(
    mortal: Service, told: str, status: int, code: str, said: str
) -> None:
    """Dead, greedy, stuck: it is named, leaves nothing behind, and the next file is read."""
    with pytest.MonkeyPatch.context() as patch:
        if told == "wait":
            patch.setattr("app.http.normaliser.run_command", lambda run, _: run_command(run, 1))
        body = problem(mortal.upload(f"{told}\n"), status, code)
    assert said in body["detail"]
    assert mortal.uploads_in_flight() == []
    assert mortal.upload().status_code == 201


@pytest.mark.parametrize("name", TAKEN)
def test_taken(tight: Service, name: str) -> None:
    content, first, last = TAKEN[name]
    answer = tight.upload(content())
    assert answer.status_code == 201, answer.text
    statistics = answer.json()["statistics"]
    assert (statistics["time_min"], statistics["time_max"]) == (first, last)


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        ("kill -SEGV $$", 422, "bad_format"),
        ("kill -ABRT $$", 422, "bad_format"),
        ("echo std::bad_alloc >&2; kill -ABRT $$", 422, "too_large"),
        ("kill -KILL $$", 422, "too_large"),
        ("echo 'OSError: [Errno 28] No space left on device' >&2; exit 1", 503, "disk_full"),
        ("exit 3", 500, "internal_error"),
    ],
)
def test_reader_that_dies(
    tight: Service, monkeypatch: pytest.MonkeyPatch, script: str, status: int, code: str
) -> None:
    """What crashes on a file is the file's fault; what merely fails is ours."""
    monkeypatch.setattr("app.http.normaliser.launch_command", lambda *_, **__: ["sh", "-c", script])
    problem(tight.upload(), status, code)
    assert tight.uploads_in_flight() == []


def test_the_reader_is_told_no_secret(
    tight: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It parses what strangers wrote."""
    for name in ("DATABASE_URL", "BROKER_URL", "KEY_SECRET", "POSTGRES_PASSWORD"):
        monkeypatch.setenv(f"TD3_{name}", "hush")
    seen = tmp_path / "seen"
    script = f"env > {seen}; kill -6 $$"
    monkeypatch.setattr("app.http.normaliser.launch_command", lambda *_, **__: ["sh", "-c", script])
    problem(tight.upload(), 422, "bad_format")
    assert "PATH=" in seen.read_text()
    assert "hush" not in seen.read_text()


def test_same_content_at_once_is_one_blob(each_service: Service) -> None:
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(each_service.upload, [LOG, LOG, LOG.replace(",", "\t")]))
    assert [answer.status_code for answer in answers] == [201] * 3
    [fingerprint] = {answer.json()["fingerprint"] for answer in answers}
    with each_service.store.read() as session:
        assert session.scalar(select(func.count()).select_from(Blob)) == 1
        assert session.scalars(select(Blob.sha256)).one() == fingerprint
