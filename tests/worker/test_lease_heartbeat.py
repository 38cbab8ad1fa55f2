"""The lease while the database does not answer."""

from typing import Any

import pytest

from app.errors import StorageUnavailableError
from app.settings import Settings
from app.store import jobs
from tests.worker.kit import Service
from worker.lease_heartbeat import LeaseHeartbeat, LeaseLostError

LEASE = jobs.Lease("job_1", "token", 1)


def down(*_: Any, **__: Any) -> Any:
    raise StorageUnavailableError("down")


def make_heartbeat(
    service: Service, heartbeat_seconds: float, lease_seconds: float
) -> LeaseHeartbeat:
    settings = Settings(
        cancel_poll_seconds=0.01, heartbeat_seconds=heartbeat_seconds, lease_seconds=lease_seconds
    )
    return LeaseHeartbeat(service.store, LEASE, settings)


def test_without_a_database_the_lease_is_lost_when_it_ends(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "check", down)
    monkeypatch.setattr(jobs, "renew", down)
    with make_heartbeat(service, heartbeat_seconds=0.02, lease_seconds=0.1) as heartbeat:
        with pytest.raises(LeaseLostError):
            heartbeat.retry(down)
        assert heartbeat.lease_lost.is_set()


def test_a_database_that_comes_back_is_fine(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, False, True])
    monkeypatch.setattr(jobs, "check", down)

    def sometimes() -> str:
        return "done" if next(answers) else down()

    with make_heartbeat(service, heartbeat_seconds=500, lease_seconds=1000) as heartbeat:
        assert heartbeat.retry(sometimes) == "done"
        assert not heartbeat.lease_lost.is_set()
