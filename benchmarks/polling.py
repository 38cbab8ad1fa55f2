"""An API server, an empty one beside it, and many clients that ask both in turn."""

import asyncio
import contextlib
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from fastapi import FastAPI

ROOT = Path(__file__).parents[1]
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Turns:
    """How often each of the two is asked, by how many clients, and for how long (seconds)."""

    rounds: int
    clients: int
    seconds: float


empty = FastAPI()


@empty.get("/empty")
async def get_empty() -> dict[str, str]:
    """What the framework alone costs."""
    return {}


# --- the programs ---------------------------------------------------------------------------------


@contextlib.contextmanager
def program(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program of ours, its log thrown away, stopped at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextlib.contextmanager
def server(app: str, **environment: str) -> Iterator[tuple[str, int]]:
    """Uvicorn, as `td3 serve` starts it; its URL and process id."""
    port = _free_port()
    with program("uvicorn", app, "--port", str(port), **environment) as process:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{url}/healthz", timeout=60, trust_env=False)  # any answer will do
                break
            except httpx.TransportError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield url, process.pid


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, its own and the kernel's for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


# --- polling against an empty route ---------------------------------------------------------------


async def hammer(
    url: str, paths: Sequence[str], clients: int, seconds: float, key: str | None
) -> tuple[list[float], float]:
    """Latencies of all requests that `clients` persistent connections got done, and in how long.

    Each of them asks for one of the paths, again and again.
    """
    address = httpx.URL(url)
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    latencies: list[float] = []
    # First all connections, then the clock: on a busy machine connecting takes a while.
    connections = await asyncio.gather(
        *(asyncio.open_connection(address.host, address.port) for _ in range(clients))
    )
    begin = time.monotonic()
    end = begin + seconds

    async def client(path: str, soft_embedding: StreamReader, writer: StreamWriter) -> None:
        request = f"GET {path} HTTP/1.1\r\nHost: {address.host}\r\n{authorization}\r\n".encode()
        while time.monotonic() < end:
            began = time.perf_counter()
            writer.write(request)
            head = await soft_embedding.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"{path}: {head[:100]!r}")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            await soft_embedding.readexactly(int(length[1]))
            latencies.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(
        *(
            client(paths[number % len(paths)], *connection)
            for number, connection in enumerate(connections)
        )
    )
    return latencies, time.monotonic() - begin


def measure(
    server_: tuple[str, int], paths: Sequence[str], how: Turns, key: str | None
) -> dict[str, float]:
    """One turn: throughput, latency, the server's CPU time for one request."""
    url, pid = server_
    before = cpu_seconds(pid)
    latencies, took = asyncio.run(hammer(url, paths, how.clients, how.seconds, key))
    return {
        "requests_per_second": len(latencies) / took,
        "cpu_us_per_request": (cpu_seconds(pid) - before) / len(latencies) * 1e6,
        **quantiles(latencies),
    }


def quantiles(latencies: list[float]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds."""
    cuts = statistics.quantiles(latencies, n=100)
    return {"p50_ms": cuts[49] * 1e3, "p99_ms": cuts[98] * 1e3}


def compare(
    api: tuple[str, int], paths: Sequence[str], how: Turns, key: str | None = None
) -> dict[str, dict[str, float] | float]:
    """Turn by turn; medians over the turns, and the ratio of the two."""
    with server("benchmarks.polling:empty") as other:
        taken: dict[str, list[dict[str, float]]] = {"get_job": [], "empty": []}
        for _ in range(how.rounds):
            taken["get_job"].append(measure(api, paths, how, key))
            taken["empty"].append(measure(other, ["/empty"], how, None))
    medians = {
        name: {key: statistics.median(turn[key] for turn in windows) for key in windows[0]}
        for name, windows in taken.items()
    }
    job, nothing = medians["get_job"], medians["empty"]
    return {
        **medians,
        "throughput_ratio": job["requests_per_second"] / nothing["requests_per_second"],
        "cpu_ratio": nothing["cpu_us_per_request"] / job["cpu_us_per_request"],
    }
