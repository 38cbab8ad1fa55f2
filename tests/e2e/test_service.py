"""The real service with the real engine: HTTP in, summary out, and kills in between."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from td3engine.api.client import Client as PublicClient
from td3engine.client import Client, Event, Problem, ServiceError
from td3engine.config import DistillConfig
from td3engine.config.presets import merge
from td3engine.contract import SUMMARY_FILES
from td3engine.data.reading import read_log
from td3engine.pipeline.run import Control, Run
from td3engine.summary.bundle import load_bundle
from tests.td3engine.small import (
    LEARNER_ROWS,
    LOG_ROWS,
    learner_rows,
    small_config,
    write_small_log,
)
from tests.worker.kit import is_alive, wait_for

# Enough outer steps to be met in the middle, few enough to be over in seconds.
CONFIG = small_config(outer={"steps": 150, "validate_every": 50})
ENDLESS = small_config(outer={"steps": 1_000_000, "validate_every": 1_000_000})


def td3() -> str:
    """The installed command."""
    return str(Path(sys.executable).with_name("td3"))


class Served:
    """`td3 serve` in a folder, quick to notice what the tests do to it."""

    def __init__(self, folder: Path) -> None:
        quick = {
            "TD3_LEASE_SECONDS": "2.5",
            "TD3_HEARTBEAT_SECONDS": "0.3",
            "TD3_CANCEL_POLL_SECONDS": "0.1",
            "TD3_JANITOR_SECONDS": "0.2",
            "TD3_REPUBLISH_AFTER_SECONDS": "0.5",
            "TD3_CHECKPOINT_SECONDS": "0.05",
            "OMP_NUM_THREADS": "1",
        }
        self.folder = folder
        with (folder.parent / f"{folder.name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [td3(), "serve", "--data-dir", str(folder), "--port", "0"],
                env={**os.environ, **quick},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().removeprefix("listening on ").strip()

    @property
    def pids(self) -> list[int]:
        """Valkey, API, worker."""
        found: list[int] = json.loads((self.folder / "service.json").read_text())["pids"]
        return found

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("e2e") / "service")
    yield served
    served.stop()


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.url) as client:
        yield client


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_log(tmp_path_factory.mktemp("log") / "log.csv")


@pytest.fixture(scope="module")
def by_library(log: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The summary of CONFIG as the library makes it, without service or interruption.

    Of the log without its `reading`: an engine of the service has the normalised log, which does
    not say how the upload was read, so its manifest does not name the upload's columns.
    """
    folder = tmp_path_factory.mktemp("library")
    interactions = replace(read_log(log), reading=None)
    fingerprint = interactions.fingerprint()
    Run(interactions, fingerprint, CONFIG, folder, Control(lambda _: None)).run()
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in SUMMARY_FILES}


def first(client: Client, job_id: str, wanted: Callable[[Event], bool]) -> Event:
    """The job's first event that is wanted."""
    for event in client.events(job_id):
        if wanted(event):
            return event
    pytest.fail(f"{job_id} is over: {client.job(job_id)}")


def is_distilling_checkpoint(event: Event) -> bool:
    return event.type == "checkpoint" and event.data.get("phase") == "distilling"


def dump(config: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = config.model_dump(mode="json")
    return dumped


def test_a_job_gives_what_the_library_gives(
    client: Client, log: Path, by_library: dict[str, bytes], tmp_path: Path
) -> None:
    job = client.create_job(file=log, config=dump(CONFIG), name="small")
    events = list(client.events(job.id))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    phases = [event.data["phase"] for event in events if event.type == "phase"]
    assert phases == ["preparing", "pretraining", "distilling", "evaluating", "publishing"]
    done = client.job(job.id)
    assert (done.status, done.attempt, done.error) == ("succeeded", 1, None)
    client.download_summary(job.id, tmp_path)
    assert files(tmp_path) == by_library
    few_items = {"softmax": "full"}
    data = {"validate_by": "unseen", "duplicates": "keep"}
    teacher = {**few_items, "counting_share": 0.7}
    outer = {**few_items, "support": "all"}
    settled = {"auto": (), "teacher": teacher, "outer": outer, "data": data}
    wanted = DistillConfig.model_validate(merge(CONFIG.model_dump(), settled))
    assert load_bundle(tmp_path).manifest.config == wanted
    assert done.metrics is not None
    rows = learner_rows(load_bundle(tmp_path).manifest)
    assert {row["name"] for row in done.metrics["rows"]} == {*LOG_ROWS, *rows}


def test_the_public_client_gives_the_summary_that_the_library_gives(
    served: Served, log: Path, by_library: dict[str, bytes], tmp_path: Path
) -> None:
    with PublicClient(served.url) as public:
        summary = public.distill(log, config=dump(CONFIG), folder=tmp_path / "fetched")
    assert files(tmp_path / "fetched") == by_library
    summary.save(tmp_path / "saved")
    assert files(tmp_path / "saved") == by_library


def test_cancel_while_distilling(served: Served, client: Client, log: Path) -> None:
    job = client.create_job(file=log, config=dump(ENDLESS))
    first(client, job.id, is_distilling_checkpoint)
    assert client.cancel(job.id).status in ("cancelling", "cancelled")
    over = client.wait(job.id, timeout=60)
    assert (over.status, over.artifacts) == ("cancelled", [])
    assert engines(served) == []
    with pytest.raises(ServiceError) as refused:
        client.cancel(job.id)
    assert refused.value.problem.status == 409


@pytest.mark.parametrize("victim", ["worker", "engine"])
def test_kill_9_in_mid_job_costs_one_attempt_and_no_byte(
    served: Served,
    client: Client,
    log: Path,
    by_library: dict[str, bytes],
    tmp_path: Path,
    victim: str,
) -> None:
    job = client.create_job(file=log, config=dump(CONFIG))
    first(client, job.id, is_distilling_checkpoint)
    (engine,) = engines(served)
    worker = served.pids[2]
    os.kill(worker if victim == "worker" else engine, signal.SIGKILL)
    wait_for(lambda: not is_alive(engine), "the engine's end")
    over = client.wait(job.id, timeout=120)
    assert (over.status, over.attempt) == ("succeeded", 2), over.error
    client.download_summary(job.id, tmp_path)
    assert files(tmp_path) == by_library
    starts = [e for e in client.events(job.id) if e.data.get("status") == "running"]
    assert len(starts) == 2


def engines(served: Served) -> list[int]:
    """Engine processes of this service: their work folders lie in its data folder, or are theirs
    by parent.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if b"td3engine.cli" in arguments and b"run" in arguments and parent in served.pids:
            found.append(int(folder.name))
    return found


def test_a_log_without_an_item_column_is_refused_at_upload(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,timestamp\nu1,1\n")
    with pytest.raises(ServiceError) as refused:
        client.create_job(file=path)
    problem: Problem = refused.value.problem
    assert (problem.status, problem.code, problem.param) == (422, "missing_column", "file")
    assert "item" in problem.detail
    assert "user_id" in problem.detail


def demo(folder: Path, log: Path, steps: int) -> subprocess.Popen[str]:
    command = [td3(), "demo", "--data", str(log), "--out", str(folder)]
    for part, values in dump(small_config(outer={"steps": steps})).items():
        if isinstance(values, dict):
            for key, value in values.items():
                if isinstance(value, dict):  # of options, which have names of their own
                    continue
                command += ["--set", f"{part}.{key}={'null' if value is None else value}"]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Settings of some other service, which the demo's own must not take.
        env={**os.environ, "TD3_DATABASE_URL": "sqlite:////proc/nowhere/td3.sqlite3"},
    )


def left_running(folder: Path) -> list[str]:
    """Command lines of processes that name this folder."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = cmdline.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if str(folder) in line and is_alive(int(cmdline.parent.name)):
            found.append(line)
    return found


def test_the_demo_runs_and_writes_its_result(log: Path, tmp_path: Path) -> None:
    process = demo(tmp_path / "demo", log, steps=4)
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out
    result = Path(out.splitlines()[-1])
    content = json.loads(result.read_text())
    assert {"dataset", "config", "seconds", "rows"} == set(content)
    names = {(row["name"], row["mode"]) for row in content["rows"]}
    # A summary that is its start has no row of that.
    assert names | {("initial summary", "shared-items")} == {
        *((n, "from-scratch") for n in (*LOG_ROWS, "random users", "TD3 summary")),
        *((n, "shared-items") for n in ("zero steps", "random users", *LEARNER_ROWS)),
    }
    for row in content["rows"]:
        assert row["protocol"] in ("all", "unseen", "sampled-100")
        assert {"hr@10", "ndcg@10", "ndcg@10_std", "train_seconds", "numbers_stored"} <= set(row)
        if row["name"] == "TD3 summary":
            assert row["making_seconds"] == content["seconds"]["job: distilling"]
    assert left_running(tmp_path) == []


def test_ctrl_c_in_the_demo_leaves_nothing_running(log: Path, tmp_path: Path) -> None:
    process = demo(tmp_path / "demo", log, steps=1_000_000)
    wait_for(
        lambda: any("td3engine.cli run" in line for line in left_running(tmp_path)), "the engine"
    )
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert time.monotonic() - started < 45
    assert left_running(tmp_path) == []
