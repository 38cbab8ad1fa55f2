"""The whole service as a user starts it: it comes up, stays up, and leaves nothing running."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.admin import keys as keys_command
from app.processes.launch import launch_command
from app.processes.supervise import CRASH_LIMIT, Child, ServeError
from app.settings import Settings
from app.standalone.serve import Service, main
from tests.app.http.kit import LOG, wait_for

START_SECONDS = 60


@dataclass
class Served:
    """`python -m app.standalone.serve`, and how to find every process that it started."""

    data_dir: Path
    mark: str = field(default_factory=lambda: f"TD3_TEST_MARK={uuid.uuid4().hex}")
    process: subprocess.Popen[str] | None = None
    # Valkey writes its title over its environment, so that one is known by its number only.
    known: set[int] = field(default_factory=set)

    def start(self) -> str:
        """Start it; returns the URL that it prints."""
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "app.standalone.serve",
                "--data-dir",
                str(self.data_dir),
                "--port",
                "0",
            ],
            env={**os.environ, name: value},
            stdout=subprocess.PIPE,
            stderr=(self.data_dir.parent / "serve.log").open("a"),
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # "" when it ends without having printed anything
        assert line.startswith("listening on "), (self.data_dir.parent / "serve.log").read_text()
        return line.removeprefix("listening on ").strip()

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.data_dir / "service.json").read_text())
        self.known |= {state["pid"], *state["pids"]}
        return state

    def alive(self) -> set[int]:
        """Every process that was started by it, or by a process that was."""
        found = {pid for pid in self.known if _runs(pid)}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(int(folder.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it ended while we looked, or is somebody else's
        return found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "data")
    yield served
    if served.process is not None:
        served.process.kill()
        served.process.wait()
        wait_for(lambda: not served.alive())


def test_starts_serves_revives_and_stops(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    url = served.start()
    assert served.process is not None
    state = served.state()
    assert state["url"] == url
    assert state["pid"] == served.process.pid
    assert set(state["pids"]) < served.alive()
    assert len(state["pids"]) == 3

    with httpx.Client(base_url=url, timeout=30) as http:
        assert http.get("/readyz").json()["ready"] is True
        answer = http.post("/datasets", files={"file": ("log.csv", LOG)})
        assert answer.status_code == 201, answer.text

        # The folder is taken, which a second one says instead of spoiling it.
        assert main(["--data-dir", str(served.data_dir), "--port", "0"]) == 1
        assert f"in use by another service (process {served.process.pid})" in caplog.text

        api = state["pids"][1]
        os.kill(api, signal.SIGKILL)
        wait_for(lambda: served.state()["pids"][1] != api)
        listed = http.get("/datasets").json()["data"]  # at the same address, with what was there
        assert [dataset["id"] for dataset in listed] == [answer.json()["id"]]

        # A client that follows a job does not hold up the stop.
        job_id = _job_that_waits(http, answer.json()["id"])
        stream = {"accept": "text/event-stream"}
        with http.stream("GET", f"/jobs/{job_id}/events", headers=stream) as events:
            lines = events.iter_lines()
            assert next(lines) == "event: status"
            served.process.send_signal(signal.SIGTERM)
            for _ in lines:
                pass
    assert served.process.wait(timeout=60) == 0
    wait_for(lambda: not served.alive())
    assert not (served.data_dir / "service.json").exists()
    log = (served.data_dir.parent / "serve.log").read_text()
    assert "Traceback" not in log
    assert "did not stop in time" not in log


def _job_that_waits(http: httpx.Client, dataset_id: str) -> str:
    """A job that is not over: whatever the engine does with it takes longer than the test."""
    job_id: str = http.post("/jobs", json={"dataset_id": dataset_id}).json()["id"]
    return job_id


def test_killed_service_leaves_nothing_and_starts_again(tmp_path: Path) -> None:
    # A long path, so that the broker's socket has to go elsewhere.
    served = Served(tmp_path / ("long-" * 20) / "data")
    served.data_dir.parent.mkdir()
    try:
        served.start()
        assert served.process is not None
        socket = Path(served.state()["broker_url"].removeprefix("redis+socket://"))
        assert served.data_dir not in socket.parents
        assert len(served.alive()) >= 4
        served.process.kill()
        served.process.wait()
        wait_for(lambda: not served.alive())

        url = served.start()
        assert httpx.get(f"{url}/readyz").json()["ready"] is True
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(timeout=60) == 0
        wait_for(lambda: not served.alive())
    finally:
        if served.process is not None:
            served.process.kill()
            served.process.wait()


def test_an_address_that_others_reach_needs_a_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir = ["--data-dir", str(tmp_path / "data")]
    for host in ("0.0.0.0", "192.0.2.1", "::", "example.org"):
        assert main([*data_dir, "--host", host]) == 1
        assert "td3 keys create" in caplog.text
        caplog.clear()
    assert keys_command.main([*data_dir, "create", "first"]) == 0
    # TEST-NET-1 is nobody's: with a key the service gets as far as finding that out.
    assert main([*data_dir, "--host", "192.0.2.1", "--broker-url", "redis://127.0.0.1:1"]) == 1
    assert "cannot listen on 192.0.2.1" in caplog.text


def test_child_that_does_not_stay_up_is_given_up() -> None:
    child = Child("it", ["sh", "-c", "exit 3"], environment=os.environ, grace_seconds=1)
    child.start()
    for _ in range(CRASH_LIMIT - 1):
        wait_for(child.revive)
    with pytest.raises(ServeError, match="exit code 3"):
        wait_for(child.revive)


def test_child_that_does_not_stop_is_killed() -> None:
    program = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    child = Child("it", [sys.executable, "-c", program], environment=os.environ, grace_seconds=0.2)
    child.start()
    child.stop(hurry=lambda: False)
    assert not Path(f"/proc/{child.pid}").exists()


def test_all_are_asked_to_stop_before_any_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first one ends only when the second was asked."""
    asked, up = tmp_path / "asked", tmp_path / "up"
    waits = f"trap 'while ! test -e {asked}; do sleep 0.02; done; exit' TERM"
    tells = f"trap 'touch {asked}; exit' TERM"
    service = Service(Settings(data_dir=tmp_path), workers=2)
    for number, trap in enumerate((waits, tells)):
        program = f"{trap}; touch {up}{number}; while :; do sleep 0.02; done"
        service.start_child(
            Child("it", ["sh", "-c", program], environment=os.environ, grace_seconds=10)
        )
    wait_for(lambda: len(list(tmp_path.glob("up*"))) == 2)
    service.stop()
    assert asked.exists()
    assert "did not stop in time" not in caplog.text


def test_impossible_number_of_workers() -> None:
    with pytest.raises(SystemExit):
        main(["--workers", "-1"])


def test_launched_process_dies_with_its_parent() -> None:
    program = (
        "import subprocess, sys; from app.processes.launch import launch_command;"
        "child = subprocess.Popen(launch_command(['sh', '-c', 'echo up; sleep 60']),"
        " stdout=subprocess.PIPE); child.stdout.readline();"
        "print(child.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert _runs(child)
    parent.kill()
    parent.communicate()
    wait_for(lambda: not _runs(child))


def test_launched_process_has_its_memory_limit() -> None:
    def limit(memory_bytes: int | None) -> str:
        command = launch_command(["sh", "-c", "ulimit -v"], memory_bytes=memory_bytes)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert limit(2**30) == str(2**20)
    assert limit(None) != str(2**20)


def _runs(pid: int) -> bool:
    """Whether the process is there, and not just waiting to be reaped."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "State:\tZ" not in status
