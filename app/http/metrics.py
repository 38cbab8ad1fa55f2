"""What the API tells Prometheus: what it counted, and at each scrape what the database knows.

Every API process has its own counters. The figures of the store are the same from each of them:
take their maximum, not their sum.
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
from sqlalchemy.exc import SQLAlchemyError

from app.store.engine import Store, database_now
from app.store.statistics import StoreStatistics, read_statistics

logger = logging.getLogger(__name__)

_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


def process_registry() -> CollectorRegistry:
    """A registry with what is known of this process: CPU time, memory, open files, Python."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


class HttpMetrics:
    """Requests that this process has served."""

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
        """Count a request."""
        self._requests.labels(method, route, status).inc()
        if status:
            self._seconds.labels(method, route).observe(seconds)
        if body_bytes:
            self._received.labels(method, route).inc(body_bytes)


class StoreCollector(Collector):
    """Asks the database at each scrape. One that does not answer is a metric, not an error."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> list[Metric]:
        """Nothing: registering must not ask the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The store's gauges, or only that it does not answer."""
        try:
            with self._store.read() as session:
                found = read_statistics(session, database_now(session))
        except SQLAlchemyError as error:
            logger.warning("metrics: the database does not answer: %s", type(error).__name__)
            yield _gauge("td3_database_up", "Whether the database answers.", 0)
            return
        yield _gauge("td3_database_up", "Whether the database answers.", 1)
        yield from _describe(found)


def _describe(found: StoreStatistics) -> Iterator[Metric]:
    by_state = GaugeMetricFamily("td3_jobs", "Jobs by state.", labels=["state"])
    for state, count in found.jobs_by_state.items():
        by_state.add_metric([state], count)
    yield by_state
    by_phase = GaugeMetricFamily(
        "td3_jobs_held", "Jobs that a worker holds, by phase.", labels=["phase"]
    )
    for phase, count in found.held_by_phase.items():
        by_phase.add_metric([phase], count)
    yield by_phase
    yield _gauge(
        "td3_queue_oldest_age_seconds",
        "How long the job that has been queued longest waits; 0 with an empty queue.",
        found.oldest_queued_seconds,
    )
    yield _gauge(
        "td3_lease_overdue_seconds",
        "How long the lease that ran out first has been over; 0 if none has. A job is stuck "
        "where this grows.",
        found.overdue_lease_seconds,
    )


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)
