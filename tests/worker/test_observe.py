"""What operators see of workers: logs with ids, metrics of attempts and GPUs."""

import os
import socket
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.promtool import check_metrics
from tests.worker.kit import Script, Service, wait_for
from worker.metrics import GpuCollector, WorkerMetrics

SCRIPT: Script = [
    ["phase", "distilling"],
    ["complain", "from the engine"],
    ["mark", "ready"],
    ["wait", "go"],
    ["result"],
]


def samples(text: str) -> dict[tuple[str, str], float]:
    """Values by name and the value of the only label, if any."""
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_records_of_worker_and_engine_name_the_job(service: Service) -> None:
    job_id = service.make_job(SCRIPT, request_id="r-1")
    port = free_port()
    service.start_worker(WORKER_METRICS_PORT=str(port))
    service.wait_mark(job_id, "ready")
    scraped = samples(httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text)
    assert scraped["td3_attempts_running", ""] == 1
    assert scraped["td3_claim_wait_seconds_count", ""] == 1
    service.open_gate(job_id, "go")
    service.wait_status(job_id, "succeeded")

    def over() -> bool:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        return samples(text).get(("td3_attempts_total", "succeeded")) == 1

    wait_for(over, service.logs)
    wait_for(lambda: "now succeeded" in service.logs(), service.logs)
    ids = {"job_id": job_id, "attempt": 1, "request_id": "r-1"}
    said = {record["message"]: record for record in service.records()}  # all of it is JSON
    for message in ("claimed", "from the engine", "now succeeded"):
        assert ids.items() <= said[message].items()
    assert said["from the engine"]["logger"] == "engine"


def test_claims_and_ends_are_counted() -> None:
    metrics = WorkerMetrics()
    metrics.claimed(timedelta(seconds=2))
    metrics.claimed(timedelta(seconds=-1))  # the clock of another machine is ahead
    metrics.ended("lost")
    found = samples(generate_latest(metrics.registry).decode())
    assert found["td3_claim_wait_seconds_sum", ""] == 2
    assert found["td3_attempts_total", "lost"] == 1
    assert found["td3_attempts_running", ""] == 1


def test_promtool_finds_nothing_to_complain_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(tmp_path, "echo 0, 1, 2")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    metrics = WorkerMetrics()
    metrics.claimed(timedelta(seconds=2))
    metrics.ended("succeeded")
    check_metrics(generate_latest(metrics.registry).decode())


def nvidia_smi(folder: Path, script: str) -> GpuCollector:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return GpuCollector(str(path))


def test_memory_of_each_gpu(tmp_path: Path) -> None:
    collector = nvidia_smi(tmp_path, "echo 0, 512, 81559; echo 1, [N/A], 40960")
    found = {
        (family.name, sample.labels["gpu"]): sample.value
        for family in collector.collect()
        for sample in family.samples
    }
    mebibyte = 2**20
    assert found == {
        ("td3_gpu_memory_used_bytes", "0"): 512 * mebibyte,
        ("td3_gpu_memory_total_bytes", "0"): 81559 * mebibyte,
        ("td3_gpu_memory_total_bytes", "1"): 40960 * mebibyte,
    }


def test_a_driver_that_fails_costs_only_its_own_metrics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert list(nvidia_smi(tmp_path, "exit 9").collect()) == []
    assert "nvidia-smi does not answer" in caplog.text


def test_a_worker_finds_the_gpus_of_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(tmp_path, "echo 0, 1, 2")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert ("td3_gpu_memory_used_bytes", "0") in samples(
        generate_latest(WorkerMetrics().registry).decode()
    )
