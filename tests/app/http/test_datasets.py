"""Uploads: what is stored, what is refused, and that nothing stays behind."""

import gzip
import hashlib
import resource
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.blobs.protocol import get_to_file
from app.http.upload_folders import UploadFolders
from app.main import create_app
from app.settings import SettingsError
from td3engine.data.normalised import read_normalised
from td3engine.data.types import Limits
from tests.app.http.kit import LOG, Service, problem, running, settings_for, wait_for


def test_upload(each_service: Service, tmp_path: Path) -> None:
    answer = each_service.upload(name="ratings")
    assert answer.status_code == 201
    dataset = answer.json()
    assert answer.headers["location"] == f"/datasets/{dataset['id']}"
    assert dataset["name"] == "ratings"
    assert dataset["source_sha256"] == hashlib.sha256(LOG.encode()).hexdigest()
    assert dataset["source_bytes"] == len(LOG)
    statistics = dict(dataset["statistics"])
    assert statistics.pop("facts")["equal_rows"] == 0
    assert statistics.pop("reading")["columns"] == ["user_id", "item_id", "timestamp"]
    assert any("11 items are left" in note for note in statistics.pop("notes"))
    assert statistics == {
        "users": 7,
        "items": 11,
        "interactions": 200,
        "time_min": 0,
        "time_max": 199,
        "filter": {
            "min_user_interactions": 5,
            "min_item_interactions": 5,
            "users": 7,
            "items": 11,
            "interactions": 200,
            "rare_users": 0,
            "rare_items": 0,
            "interactions_of_rare_users": 0,
            "interactions_of_rare_items": 0,
            "duplicates": 0,
        },
    }
    assert each_service.http.get(f"/datasets/{dataset['id']}").json() == dataset
    assert each_service.uploads_in_flight() == []

    stored = tmp_path / "stored.parquet"
    get_to_file(each_service.blobs, dataset["fingerprint"], stored)
    assert len(read_normalised(stored).user_codes) == 200

    # The same interactions again: the same dataset, in whatever format; another name, another one.
    again = each_service.upload(LOG.replace(",", "\t"), name="ratings")
    assert (again.status_code, again.json()) == (201, dataset)
    twin = each_service.upload().json()
    assert twin["id"] != dataset["id"]
    assert twin["name"] == "log.csv"
    assert twin["fingerprint"] == dataset["fingerprint"]


def test_the_file_may_be_the_body(service: Service) -> None:
    def post(content: bytes, content_type: str, **more: str) -> httpx.Response:
        headers = {"content-type": content_type, **more}
        params = {"name": "raw", "columns": '{"user": "user_id"}'}
        return service.http.post("/datasets", content=content, headers=headers, params=params)

    packed = gzip.compress(LOG.encode())
    first = post(LOG.encode(), "text/csv; charset=utf-8")
    assert first.status_code == 201, first.text
    assert (first.json()["name"], first.json()["statistics"]["interactions"]) == ("raw", 200)
    for content, content_type, more in [
        (packed, "application/gzip", {}),
        (packed, "text/csv", {"content-encoding": "gzip"}),
    ]:
        answer = post(content, content_type, **more)
        assert answer.json() == first.json()
    problem(post(b"x", "application/x-www-form-urlencoded"), 415, "unsupported_media_type")
    answer = post(LOG.encode(), "text/csv", **{"content-encoding": "br"})
    problem(answer, 415, "unsupported_media_type")
    problem(post(b"", "text/csv"), 422, "empty_file")
    # With a form the parameters are fields of it.
    answer = service.http.post("/datasets?name=x", files={"file": ("log.csv", LOG)})
    assert problem(answer, 422, "validation_error")["param"] == "name"
    assert service.uploads_in_flight() == []


def test_columns_can_be_named(service: Service) -> None:
    log = LOG.replace("user_id,item_id,timestamp", "who,what,when")
    columns = '{"user": "who", "item": "what", "time": "when"}'
    assert service.upload(log, columns=columns).status_code == 201
    body = problem(service.upload(log), 422, "missing_column")
    assert body["param"] == "file"
    assert body["line"] == 1
    assert body["column"] == "user"
    body = problem(service.upload(log, columns='{"usr": "who"}'), 422, "validation_error")
    assert body["param"] == "columns.usr"
    problem(service.upload(log, columns="{"), 400, "invalid_json")


def test_the_order_of_rows_makes_no_other_dataset(service: Service) -> None:
    header, *rows = LOG.splitlines()
    backwards = "\n".join([header, *reversed(rows)])
    first = service.upload(name="same").json()
    assert service.upload(backwards, name="same").json() == first


def test_several_files_are_one_log(service: Service) -> None:
    header, *rows = LOG.splitlines()
    halves = ["\n".join([header, *rows[:90]]), "\n".join([header, *rows[90:]])]
    files = [("file", (f"part-{nth}.csv", half)) for nth, half in enumerate(halves)]
    parts = service.http.post("/datasets", files=files, data={"name": "whole"})
    assert parts.status_code == 201, parts.text
    dataset = parts.json()
    assert dataset["source_bytes"] == sum(map(len, halves))
    assert dataset["source_sha256"] == hashlib.sha256("".join(halves).encode()).hexdigest()
    assert dataset["statistics"]["reading"]["files"] == 2
    assert service.upload(name="whole").json() == dataset
    files[1] = ("file", ("part-1.csv", halves[1] + "\nu,i,soon\n"))
    body = problem(service.http.post("/datasets", files=files), 422, "bad_value")
    assert body["detail"].startswith("part-1.csv: line ")
    assert service.uploads_in_flight() == []


def test_too_many_files_or_bytes_of_them_are_refused(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.http.multipart.MAX_FILES", 2)
    files = [("file", ("a.csv", LOG))] * 3
    answer = service.http.post("/datasets", files=files)
    assert problem(answer, 422, "validation_error")["param"] == "file"
    limits = Limits(max_bytes=len(LOG) * 2 - 1)
    monkeypatch.setattr("app.http.routes.datasets.upload_limits", lambda *_: limits)
    problem(service.http.post("/datasets", files=files[:2]), 413, "too_large")
    assert service.uploads_in_flight() == []


def test_a_dialect_is_a_field_or_a_parameter(service: Service) -> None:
    log = b"1::1193::5::978300760\n1::661::3::978302109\n"
    columns, dialect = '{"user": 1, "item": 2, "time": 4}', '{"delimiter": "::"}'
    refused = problem(service.upload(log), 422, "missing_column")
    assert "--columns user=1 --columns item=2 --columns time=4 --delimiter ::" in refused["detail"]
    form = service.upload(log, columns=columns, dialect=dialect)
    assert form.json()["statistics"]["interactions"] == 2
    raw = service.http.post(
        "/datasets",
        content=log,
        headers={"content-type": "text/plain"},
        params={"columns": columns, "dialect": dialect, "name": "log.csv"},
    )
    assert raw.json() == form.json()
    for wrong, param in [('{"delimiter": ""}', "dialect.delimiter"), ('{"x": 1}', "dialect.x")]:
        body = problem(service.upload(log, dialect=wrong), 422, "validation_error")
        assert body["param"] == param
    bad = service.upload(LOG, dialect='{"time_format": "%Q"}')
    assert "format of times" in problem(bad, 422, "bad_value")["detail"]


def test_a_dry_run_says_how_a_log_is_read_and_keeps_nothing(service: Service) -> None:
    files = {"file": ("log.csv", LOG)}
    answer = service.http.post("/datasets?dry_run=true", files=files)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    preview = answer.json()
    assert preview["source_bytes"] == len(LOG)
    assert preview["statistics"]["reading"]["first_rows"][0] == ["u0", "i0", "0"]
    assert preview["statistics"]["notes"]
    assert service.http.get("/datasets").json()["data"] == []
    problem(
        service.http.post("/datasets?dry_run=true", files={"file": ("a", "x")}),
        422,
        "missing_column",
    )
    assert service.uploads_in_flight() == []
    assert preview["statistics"] == service.upload().json()["statistics"]


def test_bad_files_say_where(service: Service) -> None:
    body = problem(service.upload(LOG + "u1,i1,yesterday\n"), 422, "bad_value")
    assert (body["line"], body["column"]) == (202, "timestamp")
    problem(service.upload(b""), 422, "empty_file")
    assert service.uploads_in_flight() == []
    assert service.http.get("/datasets").json() == {"data": [], "has_more": False}


def test_form_fields_that_are_wrong(service: Service) -> None:
    file = {"file": ("a.csv", LOG)}
    post = service.http.post
    for answer, param in [
        (post("/datasets", files=file, data={"nmae": "x"}), "nmae"),
        (post("/datasets", files=file, data={"name": "x" * 201}), "name"),
        (post("/datasets", files=file, data={"name": "a\0b"}), "name"),
        (post("/datasets", files={"name": (None, "x")}), "file"),
        (post("/datasets", files=file, data={"name": ["a", "b"]}), "name"),
    ]:
        assert problem(answer, 422, "validation_error")["param"] == param
    large = post("/datasets", files=file, data={"columns": "x" * 300_000})
    assert problem(large, 413, "too_large")["param"] == "columns"
    assert service.uploads_in_flight() == []


def test_hostile_file_names_are_only_names(service: Service) -> None:
    answer = service.http.post("/datasets", files={"file": ("../../--help\n\x00.csv", LOG)})
    assert answer.status_code == 201, answer.text
    assert "/" not in answer.json()["name"]


@pytest.fixture
def small(sqlite_url: str, broker_url: str, tmp_path: Path) -> Iterator[Service]:
    """A service that takes little."""
    settings = settings_for(
        sqlite_url,
        broker_url,
        tmp_path,
        max_upload_bytes=5000,
        upload_limits={"max_rows": 300},
    )
    with running(settings) as service:
        yield service


def test_file_above_the_limit(small: Service) -> None:
    assert small.upload().status_code == 201
    assert problem(small.upload("x" * 5001), 413, "too_large")["param"] == "file"
    problem(small.upload(LOG + "u,i,1\n" * 200), 422, "too_many_rows")
    raw = {"content-type": "text/csv"}
    problem(small.http.post("/datasets", content=b"x" * 5001, headers=raw), 413, "too_large")
    pieces = (b"x" * 1000 for _ in range(6))  # of a length that nobody announced
    problem(small.http.post("/datasets", content=pieces, headers=raw), 413, "too_large")
    assert small.uploads_in_flight() == []


def test_wrong_limits_are_told_at_the_start(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/td3.sqlite3"
    settings = settings_for(url, "redis://", tmp_path, upload_limits={"max_rowz": 1})
    with pytest.raises(SettingsError, match="TD3_UPLOAD_LIMITS: max_rowz"):
        create_app(settings)


def _connect(service: Service) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", httpx.URL(service.url).port or 0), 10)
    connection.sendall(b"POST /datasets HTTP/1.1\r\nHost: localhost\r\n")
    connection.sendall(b"Content-Type: multipart/form-data; boundary=b\r\n")
    return connection


def test_limit_holds_while_it_arrives(small: Service) -> None:
    with _connect(small) as connection:
        connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.csv"\r\n\r\n'
        connection.sendall(b"%x\r\n%s\r\n" % (len(head), head))
        for _ in range(1000):  # 64 MB, of a body that would go on for ever
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            if select.select([connection], [], [], 0)[0]:
                break
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    wait_for(lambda: not small.uploads_in_flight())


def test_announced_length_is_refused_at_once(small: Service) -> None:
    with _connect(small) as connection:
        connection.sendall(b"Content-Length: 99999999\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_client_that_goes_away_leaves_nothing(service: Service) -> None:
    with _connect(service) as connection:
        connection.sendall(
            b"Content-Length: 9999999\r\n\r\n"
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
            + b"x"
            * 3_000_000
        )
        wait_for(lambda: any(folder.iterdir() for folder in service.uploads_in_flight()))
    wait_for(lambda: not service.uploads_in_flight())
    assert service.http.get("/datasets").json()["data"] == []


@pytest.mark.parametrize(
    "head",
    [
        b"POST /datasets HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=b\r\n",
        b"POST /datasets HTTP/1.1\r\nContent-Type: text/csv\r\n",
        b"POST /jobs HTTP/1.1\r\nContent-Type: application/json\r\n",
        b"POST /keys HTTP/1.1\r\nContent-Type: application/json\r\n",
    ],
)
def test_client_that_stops_sending_is_refused(
    sqlite_url: str, broker_url: str, tmp_path: Path, head: bytes
) -> None:
    settings = settings_for(sqlite_url, broker_url, tmp_path, stall_seconds=0.2)
    with running(settings) as service:
        address = ("127.0.0.1", httpx.URL(service.url).port or 0)
        with socket.create_connection(address, 30) as connection:
            head += (
                b"Host: localhost\r\nAuthorization: Bearer %s\r\n" % service.key("admin").encode()
            )
            connection.sendall(head + b"Content-Length: 1000\r\n\r\n--b")
            answer = b""
            while piece := connection.recv(65536):  # to the end: the service hangs up
                answer += piece
        assert answer.startswith(b"HTTP/1.1 408") and b"body_stalled" in answer
        wait_for(lambda: not service.uploads_in_flight())


def test_a_full_disk_is_worth_another_try(service: Service) -> None:
    """The size of any file of this process stands in for it, as in tests/faults."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        answer = service.upload(b"x" * 3 * 2**20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    problem(answer, 503, "disk_full")
    assert answer.headers["retry-after"]
    assert service.uploads_in_flight() == []


def test_client_that_drips_is_refused(sqlite_url: str, broker_url: str, tmp_path: Path) -> None:
    """A byte now and then is no pause, and still not for ever."""
    settings = settings_for(sqlite_url, broker_url, tmp_path, upload_seconds=0.5)
    with running(settings) as service:
        address = ("127.0.0.1", httpx.URL(service.url).port or 0)
        with socket.create_connection(address, 30) as connection:
            connection.sendall(
                b"POST /datasets HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/csv\r\n"
                b"Content-Length: 1000000\r\n\r\n"
            )
            deadline = time.monotonic() + 30
            while not select.select([connection], [], [], 0.02)[0]:
                assert time.monotonic() < deadline
                connection.sendall(b"x")
            answer = b""
            while not answer.endswith(b"}"):
                answer += (piece := connection.recv(65536))
                assert piece, answer
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"body_too_slow" in answer
        wait_for(lambda: not service.uploads_in_flight())


def test_body_that_ends_early_is_no_dataset(service: Service) -> None:
    content = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.csv"\r\n\r\n'
        + LOG.encode()
    )
    headers = {"content-type": "multipart/form-data; boundary=b"}
    problem(service.http.post("/datasets", content=content, headers=headers), 400, "bad_multipart")


@pytest.mark.parametrize(
    ("limit", "word"),
    [({"normalise_memory_bytes": 100 * 2**20}, "memory"), ({"normalise_seconds": 0.01}, "seconds")],
)
def test_reader_out_of_memory_or_time(
    sqlite_url: str, broker_url: str, tmp_path: Path, limit: dict[str, float], word: str
) -> None:
    settings = settings_for(sqlite_url, broker_url, tmp_path, **limit)
    with running(settings) as service:
        body = problem(service.upload(), 422, "too_large")
        assert word in body["detail"]
        assert service.uploads_in_flight() == []


def test_leftovers_of_a_killed_service_are_cleared_unless_another_runs(tmp_path: Path) -> None:
    folders = UploadFolders(tmp_path / "uploads")
    leftover = tmp_path / "uploads" / "upload-old"
    leftover.mkdir(parents=True)
    (leftover / "upload").write_text("x")
    with folders.in_use():
        assert not leftover.exists()
        with folders.one() as alive, UploadFolders(tmp_path / "uploads").in_use():
            assert alive.exists()


def test_list_is_paged(each_service: Service) -> None:
    ids = [each_service.dataset() for _ in range(3)]
    first = each_service.http.get("/datasets", params={"limit": 2}).json()
    assert [dataset["id"] for dataset in first["data"]] == [ids[2], ids[1]]
    assert first["has_more"] is True
    rest = each_service.http.get("/datasets", params={"limit": 2, "after": ids[1]}).json()
    assert [dataset["id"] for dataset in rest["data"]] == [ids[0]]
    assert rest["has_more"] is False
