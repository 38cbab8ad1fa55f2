"""Prometheus metrics of the API: its own counters, and gauges read from the database per scrape.

Every API process has its own counters, to be added up. The gauges are the same in every process, so
take their maximum.
"""

import logging
from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.errors import kind_of
from app.store.engine import STORE_ERRORS, Store, database_now
from app.store.statistics import StoreStatistics, read_statistics

logger = logging.getLogger(__name__)

_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


def process_registry() -> CollectorRegistry:
    """A registry with metrics of this process: CPU time, memory, open files, Python version."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


class HttpMetrics:
    """Counts the requests that this process has served."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("method", "route")
        self._requests = Counter(
            "td3_http_requests",
            "Requests by route template; status 0: the client left before an answer began.",
            (*labels, "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "td3_http_request_duration_seconds",
            "Time to the first byte of the answer (with Prefer: wait the wait is part of it).",
            labels,
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )
        self._received = Counter(
            "td3_http_received_bytes",
            "Bytes of request bodies, uploads above all, also of requests that were refused.",
            labels,
            registry=registry,
        )

    def served(
        self, method: str, route: str, status: int, *, seconds: float, body_bytes: int
    ) -> None:
        """Count a request.

        Args:
            method: of the request, or `other`.
            route: the path's template.
            status: of the answer; 0 if the client left before it began.
            seconds: until the first byte of the answer.
            body_bytes: size of the request's body.
        """
        self._requests.labels(method, route, status).inc()
        if status:
            self._seconds.labels(method, route).observe(seconds)
        if body_bytes:
            self._received.labels(method, route).inc(body_bytes)


class StoreCollector(Collector):
    """Reads the database at each scrape. An outage of it is a metric, not an error."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> list[Metric]:
        """Nothing, so that registering does not query the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The store's gauges; during an outage only `td3_database_up`."""
        try:
            with self._store.read() as session:
                statistics = read_statistics(session, database_now(session))
        except STORE_ERRORS as error:
            logger.warning("metrics: the database does not answer: %s: %s", kind_of(error), error)
            yield _gauge("td3_database_up", "Whether the database answers.", 0)
            return
        yield _gauge("td3_database_up", "Whether the database answers.", 1)
        yield from _gauges(statistics)


def _gauges(statistics: StoreStatistics) -> Iterator[Metric]:
    by_state = GaugeMetricFamily("td3_jobs", "Jobs by state.", labels=["state"])
    for state, count in statistics.jobs_by_state.items():
        by_state.add_metric([state], count)
    yield by_state
    by_phase = GaugeMetricFamily(
        "td3_jobs_held", "Jobs that a worker holds, by phase.", labels=["phase"]
    )
    for phase, count in statistics.held_by_phase.items():
        by_phase.add_metric([phase], count)
    yield by_phase
    yield _gauge(
        "td3_queue_oldest_age_seconds",
        "How long the job that has been queued longest waits; 0 with an empty queue.",
        statistics.oldest_queued_seconds,
    )
    yield _gauge(
        "td3_lease_overdue_seconds",
        "How long the lease that ran out first has been over; 0 if none has. A job is stuck "
        "where this grows.",
        statistics.overdue_lease_seconds,
    )


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)
