"""The service behind nginx: with its defaults, and as docs/operations.md configures it."""

import ssl
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser

from app.http.routes.jobs import LONGEST_WAIT_SECONDS
from td3engine.client import Client, ServiceError, UnexpectedAnswerError
from tests.app.http.kit import LOG, Service, bearer, problem, running, settings_for
from tests.nginx import nginx
from tests.servers import free_port, make_certificate

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
MEBIBYTE = b"x" * 2**20
_NGINX_SECONDS = 60  # its default for proxy_read_timeout
_LOOK_SECONDS = 10  # a look at a job takes this long at most (docs/operations.md)


@dataclass
class Proxied:
    """A service with a key, and the ports of the proxies in front of it."""

    service: Service
    key: str
    ports: dict[str, int]
    trust: ssl.SSLContext

    def url(self, name: str) -> str:
        scheme = "https" if name == "documented" else "http"
        return f"{scheme}://127.0.0.1:{self.ports[name]}"

    def http(self, name: str, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url(name), verify=self.trust, timeout=30, **more)

    def client(self, name: str) -> Client:
        return Client(self.url(name), self.key)

    def new_job(self) -> str:
        with Client(self.service.url, self.key) as client:
            return client.create_job(self.service.dataset()).id


def documented(port: int, to: int, certificate: Path, key: Path) -> str:
    """The block in the document, with the test's ports and files."""
    blocks: list[str] = []
    parser = CodeBlockParser("nginx", lambda example: blocks.append(str(example.parsed)))
    for example in Sybil([parser], pattern="*.md").parse(PAGE).examples():
        example.evaluate()
    (block,) = blocks
    for theirs, ours in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/td3.pem", str(certificate)),
        ("/etc/ssl/td3.key", str(key)),
        ("http://127.0.0.1:8000", f"http://127.0.0.1:{to}"),
    ):
        assert block.count(theirs) == 1
        block = block.replace(theirs, ours)
    return block


@pytest.fixture(scope="module")
def proxied(sqlite_template: Path, broker_server: str) -> Iterator[Proxied]:
    with tempfile.TemporaryDirectory(prefix="td3-proxied-") as name:
        folder = Path(name)
        url = f"sqlite:///{folder}/td3.sqlite3"
        (folder / "td3.sqlite3").write_bytes(sqlite_template.read_bytes())
        certificate, key = folder / "c.pem", folder / "k.pem"
        make_certificate(certificate, key)
        kinds = ("defaults", "roomy", "impatient", "down", "login", "elsewhere", "documented")
        ports = {kind: free_port() for kind in kinds}
        with running(settings_for(url, broker_server, folder)) as service:
            to = httpx.URL(service.url).port
            assert to is not None
            servers = {
                "defaults": f"proxy_pass http://127.0.0.1:{to};",
                "roomy": f"client_max_body_size 0; proxy_pass http://127.0.0.1:{to};",
                "impatient": f"proxy_read_timeout 2s; proxy_pass http://127.0.0.1:{to};",
                "down": f"proxy_pass http://127.0.0.1:{free_port()};",
                "login": "default_type text/html; return 200 '<html>Who are you?</html>';",
                "elsewhere": "return 302 https://login.example.org/;",
            }
            blocks = [
                f"server {{ listen 127.0.0.1:{ports[kind]}; location / {{ {content} }} }}"
                for kind, content in servers.items()
            ]
            blocks.append(documented(ports["documented"], to, certificate, key))
            trust = ssl.create_default_context(cafile=str(certificate))
            with nginx("\n".join(blocks), *ports.values()):
                yield Proxied(service, service.key(), ports, trust)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("td3engine.client.answers.PAUSES", (0.0, 0.0))


@pytest.mark.parametrize("name", ["roomy", "documented"])
def test_refusals_of_uploads_arrive(proxied: Proxied, name: str) -> None:
    with proxied.http(name) as http:
        for _ in range(8):
            answer = http.post("/datasets", content=MEBIBYTE * 50)
            problem(answer, 401, "key_required")


@pytest.mark.parametrize("name", ["defaults", "documented"])
def test_a_job_from_upload_to_its_end(proxied: Proxied, tmp_path: Path, name: str) -> None:
    """Its events come as they happen, and not when the stream is over."""
    service = proxied.service
    with proxied.http(name, headers=bearer(proxied.key)) as http:
        http.get("/readyz").raise_for_status()
        answer = http.post("/jobs", files={"file": ("log.csv", LOG)})
        assert answer.status_code == 202, answer.text
        url = answer.headers["location"]
        lease = service.claim(answer.json()["id"])
        with http.stream("GET", f"{url}/events", headers={"accept": "text/event-stream"}) as events:
            lines = events.iter_lines()
            while '"status":"running"' not in next(lines):
                pass
            service.succeed(lease, tmp_path)
            assert any('"status":"succeeded"' in line for line in lines)
        assert http.get(f"{url}/summary").content.startswith(b"PK")


def test_the_documented_one_takes_large_uploads(proxied: Proxied) -> None:
    log = LOG + "".join(f"u{i},i{i % 99},{i}\n" for i in range(200_000))
    assert len(log) > len(MEBIBYTE)
    with proxied.http("documented", headers=bearer(proxied.key)) as http:
        answer = http.post("/datasets", files={"file": ("log.csv", log)}, timeout=60)
        assert answer.status_code == 201, answer.text


def test_waits_end_before_nginx_gives_up(proxied: Proxied) -> None:
    assert LONGEST_WAIT_SECONDS + _LOOK_SECONDS < _NGINX_SECONDS
    job_id = proxied.new_job()
    with proxied.http("defaults", headers={**bearer(proxied.key), "prefer": "wait=600"}) as http:
        http.post(f"/jobs/{job_id}/cancel").raise_for_status()
        answer = http.get(f"/jobs/{job_id}")
    assert answer.headers["preference-applied"] == f"wait={LONGEST_WAIT_SECONDS}"


def test_the_client_waits_through_a_proxy_that_gives_up_sooner(proxied: Proxied) -> None:
    service = proxied.service
    job_id = proxied.new_job()
    lease = service.claim(job_id)
    given_up = threading.Event()
    with proxied.client("impatient") as client:

        def look(answer: httpx.Response) -> None:
            if answer.status_code == 504 and not given_up.is_set():
                given_up.set()
                service.fail(lease, {"code": "x", "message": "x"})

        client._http.event_hooks["response"].append(look)
        assert client.wait(job_id).status == "failed"
    assert given_up.is_set()


def test_what_a_proxy_says_is_no_answer_of_the_service(proxied: Proxied, tmp_path: Path) -> None:
    large = tmp_path / "large.csv"
    large.write_bytes(MEBIBYTE * 2)
    said = {}
    for name, status in (("down", 502), ("login", 200), ("elsewhere", 302)):
        with proxied.client(name) as client:
            for call in (
                lambda client: client.job("job_x"),
                lambda client: list(client.jobs()),
                lambda client: next(client.events("job_x")),
                lambda client: client.wait("job_x"),
                lambda client: client.create_job("ds_x"),
                lambda client: client.cancel("job_x"),
            ):
                with pytest.raises(UnexpectedAnswerError, match="nginx/") as refused:
                    call(client)
                assert refused.value.problem.status == status
            said[name] = str(refused.value)
    assert "502 Bad Gateway, text/html" in said["down"]
    assert "https://login.example.org/" in said["elsewhere"]
    with proxied.client("defaults") as client:
        with pytest.raises(UnexpectedAnswerError, match="413") as refused:
            client.upload(large)
        assert isinstance(refused.value, ServiceError)


def test_a_forwarded_request_needs_a_key_although_it_comes_from_here(proxied: Proxied) -> None:
    with proxied.http("documented") as http:
        problem(http.get("/jobs"), 401, "key_required")
