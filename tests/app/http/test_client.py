"""td3engine.client.client against the real API."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from td3engine.client import Client, DownloadError, ServiceError
from tests.app.http.kit import BUNDLE, LOG, Service, wait_for


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "ratings.csv"
    path.write_text(LOG)
    return path


def test_from_file_to_summary(service: Service, client: Client, log: Path, tmp_path: Path) -> None:
    job = client.create_job(file=log, preset="fast", config={"seed": 5}, name="mine")
    assert (job.status, job.name, job.config["seed"]) == ("queued", "mine", 5)
    assert client.dataset(job.dataset_id).statistics["interactions"] == 200

    with pytest.raises(ServiceError) as refused:
        client.download_summary(job.id, tmp_path / "summary")
    assert refused.value.problem.code == "job_not_succeeded"
    with pytest.raises(TimeoutError):
        client.wait(job.id, timeout=0)

    service.succeed(service.claim(job.id), tmp_path)
    assert client.wait(job.id).status == "succeeded"
    assert [event.data["status"] for event in client.events(job.id)] == [
        "queued",
        "running",
        "succeeded",
    ]
    paths = client.download_summary(job.id, tmp_path / "summary")
    assert {path.name: path.read_bytes() for path in paths} == {
        name: content for name, (_, content) in BUNDLE.items()
    }
    assert len(list((tmp_path / "summary").iterdir())) == 3


def test_upload_list_and_cancel(client: Client, log: Path) -> None:
    dataset = client.upload(log, "ratings")
    assert dataset.name == "ratings"
    ids = [client.create_job(dataset.id).id for _ in range(25)]  # more than one page
    assert [job.id for job in client.jobs()] == ids[::-1]
    assert client.cancel(ids[0]).is_over
    assert [job.id for job in client.jobs(status="cancelled")] == [ids[0]]
    with pytest.raises(ServiceError) as refused:
        client.cancel(ids[0])
    assert refused.value.problem.code == "job_is_over"
    with pytest.raises(ValueError, match="either"):
        client.create_job()


def test_refusals_carry_the_problem(client: Client, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("user,when\n1,2\n")
    with pytest.raises(ServiceError, match="item") as refused:
        client.upload(bad)
    problem = refused.value.problem
    assert (problem.status, problem.code, problem.column) == (422, "missing_column", "item")
    with pytest.raises(ServiceError) as refused:
        client.job("job_none")
    assert refused.value.problem.request_id


def _client_through(service: Service, meddle: Callable[[httpx.Response], httpx.Response]) -> Client:
    """A client whose answers pass through `meddle`."""

    class Meddling(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answer = super().handle_request(request)
            answer.request = request
            return meddle(answer)

    client = Client(service.url)
    client._http = httpx.Client(base_url=service.url, transport=Meddling())
    return client


class _Broken(httpx.SyncByteStream):
    """A body that breaks off after its first piece."""

    def __init__(self, whole: httpx.SyncByteStream) -> None:
        self.whole = whole

    def __iter__(self) -> Iterator[bytes]:
        yield next(iter(self.whole))
        raise httpx.ReadError("broken off")

    def close(self) -> None:
        self.whole.close()


def test_events_go_on_where_the_connection_broke(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("td3engine.client.answers.PAUSES", (0.0, 0.0))
    job_id = service.new_job()["id"]
    lease = service.claim(job_id)
    breaks: list[int] = []

    def break_off(answer: httpx.Response) -> httpx.Response:
        if len(breaks) < 3 and "event-stream" in answer.headers.get("content-type", ""):
            breaks.append(answer.status_code)
            assert isinstance(answer.stream, httpx.SyncByteStream)
            answer.stream = _Broken(answer.stream)
        return answer

    seen: list[int] = []

    def listen() -> None:
        with _client_through(service, break_off) as client:
            seen.extend(event.sequence for event in client.events(job_id))

    listener = threading.Thread(target=listen)
    listener.start()
    for step in range(5):
        service.progress(lease, step)
    wait_for(lambda: len(breaks) == 3)
    service.fail(lease, {"code": "x", "message": "x"})
    listener.join(timeout=20)
    assert seen == list(range(1, 9))


def test_events_survive_a_service_that_fails_for_a_while(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("td3engine.client.answers.PAUSES", (0.0, 0.0))
    job_id = service.new_job()["id"]
    service.fail(service.claim(job_id), {"code": "x", "message": "x"})
    failed: list[int] = []

    def fail(answer: httpx.Response) -> httpx.Response:
        if len(failed) < 3:
            failed.append(answer.status_code)
            return httpx.Response(503)
        return answer

    with _client_through(service, fail) as client:
        assert [event.sequence for event in client.events(job_id)] == [1, 2, 3]
        with pytest.raises(ServiceError):
            next(client.events("job_none"))


def test_what_was_done_is_not_done_again_when_the_answer_was_lost(
    service: Service, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("td3engine.client.answers.PAUSES", (0.0, 0.0))
    lost: list[httpx.Response] = []

    def lose(answer: httpx.Response) -> httpx.Response:
        if answer.request.method == "POST" and len(lost) < 2:
            lost.append(answer)
            raise httpx.ReadError("the connection broke")
        return answer

    dataset_id = service.dataset()
    with _client_through(service, lose) as client:
        made = client.create_job(dataset_id)
        assert [job.id for job in client.jobs()] == [made.id]
        lost.clear()
        dataset = client.upload(log)
        assert len(lost) == 2
        assert client.dataset(dataset.id) == dataset


def test_a_busy_service_is_asked_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("td3engine.client.answers.PAUSES", (0.0, 0.0))
    in_use = {"status": 409, "code": "idempotency_key_in_use"}
    busy = [
        httpx.Response(429, headers={"retry-after": "0"}),
        httpx.Response(503),
        httpx.Response(409, json=in_use),
    ]
    dataset_id = service.dataset()

    def refuse(answer: httpx.Response) -> httpx.Response:
        return busy.pop() if answer.request.method == "POST" and busy else answer

    with _client_through(service, refuse) as client:
        made = client.create_job(dataset_id)
        assert busy == []
        assert [job.id for job in client.jobs()] == [made.id]
        # A refusal is one: asking again would change nothing.
        busy.append(httpx.Response(409, json={"status": 409, "code": "job_not_over"}))
        with pytest.raises(ServiceError):
            client.retry(made.id)


def test_an_earlier_try_that_is_being_served_is_waited_for(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("td3engine.client.answers.PAUSES", (0.0, 0.0))
    left = list(range(30))  # more than the failures that are borne

    def busy(answer: httpx.Response) -> httpx.Response:
        if answer.request.method == "POST" and left:
            left.pop()
            return httpx.Response(409, json={"status": 409, "code": "idempotency_key_in_use"})
        return answer

    dataset_id = service.dataset()
    with _client_through(service, busy) as client:
        made = client.create_job(dataset_id)
        assert [job.id for job in client.jobs()] == [made.id]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_reading_goes_on_after_a_proxy_or_the_service_was_busy(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("td3engine.client.answers.PAUSES", (0.0, 0.0))
    job_id = service.new_job()["id"]
    service.succeed(service.claim(job_id), tmp_path)
    asked: list[str] = []

    def fail_each_first(answer: httpx.Response) -> httpx.Response:
        url = str(answer.request.url)
        if url in asked:
            return answer
        asked.append(url)
        return httpx.Response(status, html="<html>")

    with _client_through(service, fail_each_first) as client:
        assert client.job(job_id).status == "succeeded"
        assert [job.id for job in client.jobs()] == [job_id]
        assert list(client.metrics(job_id)) == []
        assert len(client.download_summary(job_id, tmp_path / "summary")) == 3
        asked.clear()
        assert client.wait(job_id).status == "succeeded"


def test_a_wait_has_its_time_out_also_when_nothing_answers(service: Service) -> None:
    def down(_answer: httpx.Response) -> httpx.Response:
        return httpx.Response(502, html="<html>")

    with _client_through(service, down) as client, pytest.raises(TimeoutError, match="unknown"):
        client.wait("job_x", timeout=0.3)


def test_retry_delete_and_metrics(service: Service, client: Client) -> None:
    job = client.create_job(service.dataset(), seed=3, metadata={"team": "search"})
    assert (job.seed, job.metadata) == (3, {"team": "search"})
    lease = service.claim(job.id)
    for step in range(120):  # more than one page
        service.progress(lease, step)
    assert [point.step for point in client.metrics(job.id)] == list(range(120))
    service.fail(lease, {"code": "x", "message": "x"})
    again = client.retry(job.id)
    assert (again.retry_of, again.seed, again.metadata) == (job.id, 3, {"team": "search"})
    client.cancel(again.id)
    for job_id in (job.id, again.id):
        client.delete_job(job_id)
    assert list(client.jobs()) == []
    client.delete_dataset(job.dataset_id)
    with pytest.raises(ServiceError):
        client.dataset(job.dataset_id)


def test_downloads_go_on_where_the_connection_broke(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("td3engine.client.answers.PAUSES", (0.0, 0.0))
    job_id = service.new_job()["id"]
    service.succeed(service.claim(job_id), tmp_path)
    asked: list[str | None] = []

    def break_off(answer: httpx.Response) -> httpx.Response:
        if answer.request.url.path.endswith("summary.safetensors"):
            asked.append(answer.request.headers.get("range"))
            if len(asked) < 3:
                assert isinstance(answer.stream, httpx.SyncByteStream)
                answer.stream = _Broken(answer.stream)
        return answer

    with _client_through(service, break_off) as client:
        paths = client.download_summary(job_id, tmp_path / "summary")
    assert {path.name: path.read_bytes() for path in paths} == {
        name: content for name, (_, content) in BUNDLE.items()
    }
    assert asked[0] is None
    starts = [int(str(header).removeprefix("bytes=").removesuffix("-")) for header in asked[1:]]
    assert 0 < starts[0] < starts[1]


def test_a_proxy_is_not_asked_for_this_machine(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with Client(service.url) as client:
        assert list(client.jobs()) == []


def test_damaged_download_is_not_kept(service: Service, tmp_path: Path) -> None:
    job_id = service.new_job()["id"]
    service.succeed(service.claim(job_id), tmp_path)

    def damage(answer: httpx.Response) -> httpx.Response:
        if "disposition" in "".join(answer.headers):
            answer.read()
            return httpx.Response(200, content=answer.content[:-1] + b"?")
        return answer

    with _client_through(service, damage) as client, pytest.raises(DownloadError):
        client.download_summary(job_id, tmp_path / "summary")
    assert list((tmp_path / "summary").iterdir()) == []
