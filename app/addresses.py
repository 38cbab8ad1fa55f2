"""Reads the URLs of the database and the broker, for every process and command alike.

SQLAlchemy, Celery and redis-py each read a URL in a way of their own, and ignore what they do not
know or stumble over it later. Here a URL is read once, and what is not known is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

import psycopg
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

DATABASE_FORMS = "sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME"
BROKER_FORMS = (
    "redis://HOST:PORT/DATABASE, rediss://HOST:PORT/DATABASE (TLS) or "
    "redis+socket:///PATH?db=DATABASE"
)
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TLS_OPTIONS = frozenset({*_TLS_FILES, "ssl_cert_reqs", "ssl_check_hostname"})
_DATABASE_NAMES = ("db", "virtual_host")  # as redis-py and as Celery call it
_REDIS_PORT = 6379


def parse_database_url(text: str) -> URL:
    """The database that a URL names.

    Raises:
        ValueError: it names none, or one that is not supported; the message holds no password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise ValueError(f"this is no URL of a database; it may be {DATABASE_FORMS}") from error
    match url.get_backend_name():
        case "sqlite" if url.database not in (None, "", ":memory:"):
            return url.set(drivername="sqlite")
        case "sqlite":
            # Each process would have a database of its own, and lose it.
            raise ValueError(f"a database in memory cannot be shared; it may be {DATABASE_FORMS}")
        case "postgresql" | "postgres":
            _check_libpq_options(url)
            return url.set(drivername="postgresql+psycopg")
        case other:
            raise ValueError(f"{other} is not supported; it may be {DATABASE_FORMS}")


def _check_libpq_options(url: URL) -> None:
    try:
        make_conninfo(**dict.fromkeys(url.query, ""))
    except psycopg.ProgrammingError as error:
        raise ValueError(f"{error}, behind the ?") from error


@dataclass(frozen=True)
class BrokerAddress:
    """A Redis or Valkey.

    Attributes:
        host, port: of a server, if `socket` is None.
        socket: path of a Unix socket.
        username, password: None: not given.
        database: its number.
        tls: options of the connection's TLS as redis-py names them; None: no TLS.
    """

    host: str
    port: int
    socket: str | None
    username: str | None
    password: str | None
    database: int
    tls: Mapping[str, Any] | None

    def celery_settings(self) -> dict[str, Any]:
        """The settings by which Celery connects to it."""
        user, password = quote(self.username or "", safe=""), quote(self.password or "", safe="")
        login = f"{user}:{password}@" if user or password else ""
        if self.socket is not None:
            path = quote(self.socket)
            return {"broker_url": f"redis+socket://{login}{path}?virtual_host={self.database}"}
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "redis" if self.tls is None else "rediss"
        settings: dict[str, Any] = {
            "broker_url": f"{scheme}://{login}{host}:{self.port}/{self.database}"
        }
        if self.tls is not None:
            settings["broker_use_ssl"] = dict(self.tls)
        return settings

    def redis_arguments(self) -> dict[str, Any]:
        """The keyword arguments by which `redis.Redis` connects to it."""
        arguments: dict[str, Any] = {
            "db": self.database,
            "username": self.username,
            "password": self.password,
        }
        if self.socket is not None:
            return {**arguments, "unix_socket_path": self.socket}
        arguments |= {"host": self.host, "port": self.port}
        return arguments if self.tls is None else {**arguments, "ssl": True, **self.tls}


def parse_broker_url(text: str) -> BrokerAddress:
    """The broker that a URL names.

    Raises:
        ValueError: it names none, or one that is not supported; the message holds no password.
    """
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        raise ValueError(f"this is no URL ({error}); it may be {BROKER_FORMS}") from error
    if url.scheme not in ("redis", "rediss", "redis+socket"):
        what = f"{url.scheme}:// is not supported" if url.scheme else "this is no URL"
        raise ValueError(f"{what}; it may be {BROKER_FORMS}")
    if url.fragment or ";" in text:  # Celery would take what follows ; for a second broker
        raise ValueError(f"it has a # or ;, which a URL writes as %23 and %3B: {BROKER_FORMS}")
    is_socket = url.scheme == "redis+socket"
    if is_socket and (url.hostname or not url.path.strip("/")):
        raise ValueError(f"it names no absolute path of a socket; it may be {BROKER_FORMS}")
    options = _options(url, _TLS_OPTIONS if url.scheme == "rediss" else frozenset())
    named = [options[name] for name in _DATABASE_NAMES if name in options]
    if not is_socket and url.path.strip("/"):
        named.append(unquote(url.path.strip("/")))
    return BrokerAddress(
        host=unquote(url.hostname or "127.0.0.1"),
        port=_REDIS_PORT if port is None else port,
        socket=unquote(url.path) if is_socket else None,
        username=unquote(url.username) if url.username else None,
        password=unquote(url.password) if url.password else None,
        database=_database(named),
        tls=_tls(options) if url.scheme == "rediss" else None,
    )


def _options(url: SplitResult, more: frozenset[str]) -> dict[str, str]:
    known = more.union(_DATABASE_NAMES)
    options: dict[str, str] = {}
    for name, value in parse_qsl(url.query, keep_blank_values=True):
        if name not in known:
            listed = ", ".join(sorted(known))
            raise ValueError(f"{url.scheme}:// has no option {name!r}; there are {listed}")
        if options.setdefault(name, value) != value:
            raise ValueError(f"the option {name} is there twice")
    return options


def _database(named: list[str]) -> int:
    """The database's number, which may be given in several ways if they agree; 0 if in none."""
    for name in named:
        if not (name.isascii() and name.isdecimal()):
            raise ValueError(f"the database must be a number, not {name!r}")
    numbers = {int(name) for name in named}
    if len(numbers) > 1:
        raise ValueError(f"it names several databases: {sorted(numbers)}")
    return numbers.pop() if numbers else 0


def _tls(options: Mapping[str, str]) -> dict[str, Any]:
    """Certificates are checked unless the URL says otherwise, by whichever library connects."""
    required = _choice(
        options,
        "ssl_cert_reqs",
        {"required": "required", "none": "none", "cert_required": "required", "cert_none": "none"},
        "required",
    )
    check_host = _choice(
        options, "ssl_check_hostname", {"true": True, "false": False}, required == "required"
    )
    if check_host and required == "none":
        raise ValueError("ssl_check_hostname=true needs ssl_cert_reqs=required")
    files = {name: options[name] for name in _TLS_FILES if name in options}
    return {"ssl_cert_reqs": required, "ssl_check_hostname": check_host, **files}


def _choice(options: Mapping[str, str], name: str, values: Mapping[str, Any], default: Any) -> Any:
    text = options.get(name)
    if text is None:
        return default
    if text.lower() not in values:
        raise ValueError(f"{name} must be one of {', '.join(values)}, not {text!r}")
    return values[text.lower()]
