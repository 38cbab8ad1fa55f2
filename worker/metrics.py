"""Prometheus metrics of a worker, on a port of its own (`TD3_WORKER_METRICS_PORT`)."""

import logging
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)

_WAIT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 1800, 7200, 43200)
_NVIDIA_SMI_SECONDS = 5


class WorkerMetrics:
    """Metrics of this worker's attempts, and of the memory of its machine's GPUs."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._claim_wait = Histogram(
            "td3_claim_wait_seconds",
            "From the moment a job was queued (again) to its claim by this worker.",
            buckets=_WAIT_BUCKETS,
            registry=self.registry,
        )
        self._attempts = Counter(
            "td3_attempts",
            "Attempts that ended, by what the job was then; queued: to be tried again, or given "
            "back by a worker that shuts down; lost: taken away.",
            ["outcome"],
            registry=self.registry,
        )
        self._running = Gauge(
            "td3_attempts_running", "Attempts under way in this worker.", registry=self.registry
        )
        nvidia_smi = shutil.which("nvidia-smi")
        if nvidia_smi is not None:
            self.registry.register(GpuCollector(nvidia_smi))

    def claimed(self, waited: timedelta) -> None:
        """Count the start of an attempt.

        Args:
            waited: from the time the job was queued to its claim.
        """
        self._claim_wait.observe(max(waited.total_seconds(), 0))
        self._running.inc()

    def ended(self, outcome: str) -> None:
        """Count the end of an attempt.

        Args:
            outcome: the job's status afterwards, or `lost`.
        """
        self._running.dec()
        self._attempts.labels(outcome).inc()

    def serve(self, address: str, port: int) -> None:
        """Answer scrapes from a thread.

        Raises:
            OSError: the port is in use, or the address is not of this machine.
        """
        start_http_server(port, address, self.registry)
        logger.info("metrics at http://%s:%d/metrics", address, port)


class GpuCollector(Collector):
    """Memory of each GPU, read by `nvidia-smi` because the engine is another process."""

    def __init__(self, nvidia_smi: str) -> None:
        self._command = (
            nvidia_smi,
            "--query-gpu=index,memory.used,memory.total",
            "--format=csv,noheader,nounits",
        )

    def describe(self) -> list[Metric]:
        """Nothing, so that registering starts no process."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Two gauges per GPU; none, and a warning in the log, if `nvidia-smi` fails."""
        used = GaugeMetricFamily(
            "td3_gpu_memory_used_bytes", "Memory in use, by whomever.", labels=["gpu"]
        )
        total = GaugeMetricFamily("td3_gpu_memory_total_bytes", "Memory there is.", labels=["gpu"])
        try:
            answer = subprocess.run(
                self._command,
                capture_output=True,
                text=True,
                timeout=_NVIDIA_SMI_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            logger.warning("metrics: nvidia-smi does not answer: %s", error)
            return
        for line in answer.stdout.splitlines():
            gpu, *mebibytes = (part.strip() for part in line.split(","))
            for family, number in zip((used, total), mebibytes, strict=True):
                if number.isdecimal():  # some devices answer [N/A]
                    family.add_metric([gpu], int(number) * 2**20)
        yield used
        yield total
