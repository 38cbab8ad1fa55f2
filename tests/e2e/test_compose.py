"""What ships: the Dockerfile and docker-compose.yml, read; and the roles' commands, run.

There may be no Docker here, so the roles run as plain processes. Their commands, health checks and
names of environment variables are taken from the files themselves.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import httpx
import pytest
import yaml

from app.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
ROLES = ("api", "worker", "migrate")
START_SECONDS = 60
Instructions = list[tuple[str, str]]


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def stages() -> dict[str, Instructions]:
    """Each stage's instructions, those of the stages it is built upon first."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line[:1] != "#"]
    found: dict[str, Instructions] = {}
    current: Instructions = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = found[name] = list(found.get(base, []))
        elif word:
            current.append((word, rest.strip()))
    return found


def last(stage: str, word: str) -> str:
    return [rest for instruction, rest in stages()[stage] if instruction == word][-1]


def exec_form(text: str) -> list[str]:
    command: list[str] = json.loads(text[text.index("[") :])
    return command


def test_no_image_runs_as_root() -> None:
    for stage in ("api", "worker"):
        assert last(stage, "USER") == "10001"
    for service in services().values():
        assert "user" not in service
        assert "privileged" not in service


def test_only_the_worker_has_torch() -> None:
    for stage, extras, torch in [
        ("api", ".[service]", False),
        ("worker", ".[service,engine]", True),
    ]:
        source = last(stage, "COPY").removeprefix("--from=").split()[0]
        installs = [rest for word, rest in stages()[source] if word == "RUN" and "install" in rest]
        assert f"'{extras}'" in installs[-1]
        assert any("torch" in command for command in installs) == torch
        assert all("--constraint constraints.txt" in command for command in installs)


def test_images_start_what_compose_starts() -> None:
    for role in ("api", "worker"):
        assert exec_form(last(role, "CMD")) == services()[role]["command"]
        assert services()[role]["build"]["target"] == role


def test_each_image_is_built_once() -> None:
    """Two services that build one name at the same time can get into each other's way."""
    built = [service["image"] for service in services().values() if "build" in service]
    assert sorted(built) == ["td3-api", "td3-worker"]
    assert services()["migrate"]["image"] in built


def test_everything_long_lived_has_a_health_check() -> None:
    for name, service in services().items():
        if "build" in service:
            assert last(service["build"]["target"], "HEALTHCHECK")
        elif name != "migrate":  # which ends
            assert service["healthcheck"]["test"], name


def test_roles_wait_for_what_they_need() -> None:
    found = services()
    assert found["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert found["migrate"]["restart"] == "no"
    for role in ("api", "worker"):
        needs = {name: need["condition"] for name, need in found[role]["depends_on"].items()}
        assert needs == {
            "migrate": "service_completed_successfully",
            "valkey": "service_healthy",
        }


def test_the_broker_forgets_nothing() -> None:
    broker = services()["valkey"]
    options = dict(zip(broker["command"][1::2], broker["command"][2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert broker["volumes"]


def test_only_the_api_is_published_and_only_to_this_machine() -> None:
    published = {
        name: service["ports"] for name, service in services().items() if "ports" in service
    }
    assert list(published) == ["api"]
    assert all(port.startswith("127.0.0.1:") for port in published["api"])


def test_settings_that_compose_gives_exist() -> None:
    known = {f"TD3_{name.upper()}" for name in Settings.model_fields}
    for role in ROLES:
        assert set(services()[role]["environment"]) <= known
        # All other settings, and nothing is missing where there is no such file.
        assert services()[role]["env_file"] == [{"path": ".env", "required": False}]
    assert last("api", "ENV").split()[-1].startswith("TD3_DATA_DIR=")


def test_a_stopped_worker_has_time_for_a_checkpoint() -> None:
    grace = services()["worker"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > Settings.model_fields["cancel_grace_seconds"].default


def test_all_that_is_copied_reaches_the_build() -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    assert allowed >= {"app", "worker", "td3engine", "migrations", "pyproject.toml", "README.md"}
    assert allowed >= {"constraints.txt"}
    assert all((ROOT / name).exists() for name in allowed)


def compose_command() -> list[str] | None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is None:
            continue
        done = subprocess.run([*command, "version"], capture_output=True, timeout=60, check=False)
        if done.returncode == 0:
            return command
    return None


def test_docker_compose_understands_the_file() -> None:
    command = compose_command()
    if command is None:
        pytest.skip("neither `docker compose` nor `docker-compose` is installed")
    done = subprocess.run(
        [*command, "-f", str(COMPOSE), "config", "--quiet"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# --- the roles as plain processes ----------------------------------------------------------------


class Role:
    """A role's command and environment as docker-compose.yml has them, made to fit this machine."""

    def __init__(self, name: str, values: dict[str, str], folder: Path, port: int) -> None:
        service = services()[name]
        here = {"0.0.0.0": "127.0.0.1", "8000": str(port)}
        self.folder = folder
        self.log = folder / f"{name}.log"
        self.command = self.find([here.get(part, part) for part in service["command"]])
        given = {variable: values[variable] for variable in service["environment"]}
        clean = {key: value for key, value in os.environ.items() if not key.startswith("TD3_")}
        self.environment = {**clean, **given, "TD3_DATA_DIR": str(folder / f"{name}-data")}

    @staticmethod
    def find(command: list[str]) -> list[str]:
        """The command with its program from the environment that the tests run in."""
        return [str(Path(sys.executable).parent / command[0]), *command[1:]]

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                self.command,
                env=self.environment,
                # Elsewhere, as in a container: what is imported must be installed or on the path.
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def run(self, command: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command or self.command,
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )


@pytest.fixture
def port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture
def roles(empty_postgresql_url: str, broker_url: str, tmp_path: Path, port: int) -> dict[str, Role]:
    values = {"TD3_DATABASE_URL": empty_postgresql_url, "TD3_BROKER_URL": broker_url}
    return {name: Role(name, values, tmp_path, port) for name in ROLES}


def readiness(port: int) -> tuple[int, dict[str, Any]]:
    """Status and body of /readyz, once the API answers at all."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            return error.code, json.load(error)
        except URLError as error:
            assert time.monotonic() < deadline, error
            time.sleep(0.1)


def requires_a_key(api: Role, port: int) -> None:
    """The first key, as the comment in docker-compose.yml has it made."""
    made = api.run(Role.find(["td3", "keys", "create", "compose"]))
    assert made.returncode == 0, made.stderr
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
        deadline = time.monotonic() + START_SECONDS
        while http.get("/jobs").status_code != 401:
            assert time.monotonic() < deadline
        headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
        assert http.get("/jobs", headers=headers).status_code == 200


def test_migrate_and_api(roles: dict[str, Role], port: int) -> None:
    with roles["api"].running() as process:
        status, body = readiness(port)
        assert status == 503, "an API must not call itself ready before its tables are there"
        assert body["checks"]["database"] == body["checks"]["broker"] == "ok"

        migrated = roles["migrate"].run()
        assert migrated.returncode == 0, migrated.stderr
        status, body = readiness(port)
        assert (status, body["ready"]) == (200, True)
        assert roles["migrate"].run().returncode == 0, "migrating twice does no harm"

        check = [
            part.replace(":8000/", f":{port}/") for part in exec_form(last("api", "HEALTHCHECK"))
        ]
        assert roles["api"].run(Role.find(check)).returncode == 0
        requires_a_key(roles["api"], port)
        process.terminate()
        # uvicorn ends in order and then by the signal that told it to.
        assert process.wait(timeout=30) in (0, -signal.SIGTERM), roles["api"].log.read_text()
    assert roles["api"].run(Role.find(check)).returncode != 0


def test_worker(roles: dict[str, Role]) -> None:
    assert roles["migrate"].run().returncode == 0
    shell, option, check = exec_form(last("worker", "HEALTHCHECK"))
    assert (shell, option) == ("sh", "-c")
    # The celery that the tests run with, and less patience with a worker that is known to be gone.
    program, rest = check.replace("--timeout 10", "--timeout 2").split(" ", 1)
    command = [shell, option, f"{Role.find([program])[0]} {rest}"]
    with roles["worker"].running() as process:
        deadline = time.monotonic() + START_SECONDS
        while (pinged := roles["worker"].run(command)).returncode:
            assert process.poll() is None, roles["worker"].log.read_text()
            assert time.monotonic() < deadline, pinged.stderr + roles["worker"].log.read_text()
        assert "pong" in pinged.stdout
        process.terminate()
        assert process.wait(timeout=30) == 0, roles["worker"].log.read_text()
    assert roles["worker"].run(command).returncode != 0
