"""Memory of an API process while a large log is uploaded through it.

    python -m benchmarks.upload_memory --megabytes 1000

It starts an API over SQLite in a temporary folder, uploads a small log (so that everything is
loaded), then a large one, and compares the process's peak with what it had before.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from app.store.migrate import upgrade

MEGABYTE = 10**6
_BOUNDARY = "upload-memory"
_HEAD = (
    f"--{_BOUNDARY}\r\n"
    'Content-Disposition: form-data; name="file"; filename="log.csv"\r\n\r\n'
    "user,item,time,note\n"
).encode()
_TAIL = f"\r\n--{_BOUNDARY}--\r\n".encode()
_ROWS_AT_ONCE = 250
_SECONDS = 900  # the service itself ends a reader after ten minutes


def measure(megabytes: int, folder: Path) -> dict[str, float]:
    """Upload a log of about so many megabytes (rows of 4 kB); figures of the API process in MiB."""
    with _api(folder) as (url, process_id), httpx.Client(base_url=url, timeout=_SECONDS) as client:
        _upload(client, 1)
        before = _memory(process_id, "VmRSS")
        started = time.perf_counter()
        rows = _upload(client, megabytes)
        seconds = time.perf_counter() - started
        peak = _memory(process_id, "VmHWM")
    return {
        "megabytes": megabytes,
        "rows": rows,
        "seconds": round(seconds, 1),
        "before_mib": round(before, 1),
        "peak_mib": round(peak, 1),
        "growth_mib": round(peak - before, 1),
    }


def _upload(client: httpx.Client, megabytes: int) -> int:
    """Upload a log; returns how many rows the service has counted in it."""
    headers = {"content-type": f"multipart/form-data; boundary={_BOUNDARY}"}
    answer = client.post("/datasets", content=_form(megabytes), headers=headers)
    answer.raise_for_status()
    return int(answer.json()["statistics"]["interactions"])


def _form(megabytes: int) -> Iterator[bytes]:
    yield _HEAD
    for block in range(megabytes):
        first = block * _ROWS_AT_ONCE
        yield "".join(
            f"u{row % 997},i{row % 9973},{row},".ljust(3999, "x") + "\n"
            for row in range(first, first + _ROWS_AT_ONCE)
        ).encode()
    yield _TAIL


@contextmanager
def _api(folder: Path) -> Iterator[tuple[str, int]]:
    """An API in a process of its own: its URL and process id."""
    database_url = f"sqlite:///{folder / 'td3.sqlite3'}"
    upgrade(database_url)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "app.main:app", "--fd", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            env={**os.environ, "TD3_DATA_DIR": str(folder), "TD3_DATABASE_URL": database_url},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            # The socket listens already, so that the first request just waits for the start.
            httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=120).raise_for_status()
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            process.wait()


def _memory(process_id: int, field: str) -> float:
    """A field of the process's status, in MiB."""
    status = Path(f"/proc/{process_id}/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    """Measure, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="td3-upload-") as name:
        print(json.dumps(measure(options.megabytes, Path(name))))


if __name__ == "__main__":
    main()
