"""`td3engine.Client.distill` against the real API, with a worker that only hands in what it has."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import td3engine as td3
from td3engine.api.client import JobFailedError
from td3engine.client import ServiceError
from td3engine.config.presets import build_config, merge
from td3engine.contract import SUMMARY_FILES
from td3engine.errors import OutputExistsError
from td3engine.summary.bundle import Manifest, save_bundle
from td3engine.summary.tucker import TuckerSummary
from tests.app.http import kit
from tests.app.http.kit import LOG, Service, wait_for
from tests.td3engine.oracles import seeded
from tests.td3engine.small import SMALL


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "ratings.csv"
    path.write_text(LOG)
    return path


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of a summary, with which jobs succeed in this test."""
    config = build_config("balanced", merge(SMALL, {"summary": {"inputs": "soft"}}))
    V = torch.randn(11, 8, generator=seeded(0))
    factors = TuckerSummary.initial(config.summary, V, seeded(1))
    manifest = Manifest(
        config=config,
        fingerprint="f" * 64,
        statistics={},
        validation={},
        results=[],
        numbers_stored={},
    )
    save_bundle(tmp_path / "finished", factors, [f"i{item}" for item in range(11)], manifest)
    files = {name: (tmp_path / "finished" / name).read_bytes() for name in SUMMARY_FILES}
    stored = {name: (kind, files[name]) for name, kind in SUMMARY_FILES.items()}
    monkeypatch.setattr(kit, "BUNDLE", stored)
    return files


@pytest.fixture
def worker(service: Service) -> Iterator[Callable[[Callable[[str], None]], None]]:
    """Starts a thread that does something with the one job once it is queued."""
    threads: list[threading.Thread] = []

    def start(work: Callable[[str], None]) -> None:
        def run() -> None:
            jobs = wait_for(lambda: service.http.get("/jobs").json()["data"])
            work(jobs[0]["id"])

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("progress", [False, True])
def test_the_service_gives_the_summary_of_the_job(
    service: Service,
    worker: Any,
    log: Path,
    finished: dict[str, bytes],
    tmp_path: Path,
    progress: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(job_id: str) -> None:
        lease = service.claim(job_id)
        service.progress(lease, 3)
        service.succeed(lease, tmp_path)

    worker(work)
    with td3.Client(service.url) as client:
        summary = client.distill(
            str(log),
            preset="fast",
            config={"outer": {"steps": 7}},
            seed=7,
            folder=tmp_path / "here",
            name="mine",
            progress=progress,
        )
        (job,) = client.jobs()
    assert isinstance(summary, td3.Summary)
    assert {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()} == finished
    summary.save(tmp_path / "saved")
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == finished
    assert (job.name, job.preset, job.seed) == ("mine", "fast", 7)
    assert job.config["outer"]["steps"] == 7
    assert ("3/9" in capsys.readouterr().out) == progress


@pytest.mark.usefixtures("finished")
def test_without_a_folder_nothing_stays_behind(
    service: Service, worker: Any, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    worker(lambda job_id: service.succeed(service.claim(job_id), tmp_path))
    with td3.Client(service.url) as client, monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(scratch))
        summary = client.distill(log)
    assert not list(scratch.iterdir())
    assert len(summary.top_items(0)) == 8  # it does not need its files any more


def test_a_job_that_failed_is_an_error_that_says_why(
    service: Service, worker: Any, log: Path, tmp_path: Path
) -> None:
    error = {"code": "too_little_data", "message": "nothing is left"}
    worker(lambda job_id: service.fail(service.claim(job_id), error))
    with td3.Client(service.url) as client:
        with pytest.raises(JobFailedError, match=r"failed.*nothing is left") as failed:
            client.distill(log, folder=tmp_path / "here")
        assert failed.value.code == "job_failed"
        with pytest.raises(ServiceError, match="steps"):
            client.distill(log, config={"outer": {"steps": -1}})
        assert len(list(client.jobs())) == 1
    assert not (tmp_path / "here").exists()


def test_a_folder_with_a_summary_is_refused_before_anything_is_sent(
    log: Path, finished: dict[str, bytes], tmp_path: Path
) -> None:
    with td3.Client("http://127.0.0.1:1") as client, pytest.raises(OutputExistsError):
        client.distill(log, folder=tmp_path / "finished")
