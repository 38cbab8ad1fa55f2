"""The lease while the database does not answer."""

from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from app.settings import Settings
from app.store import jobs
from tests.worker.conftest import Service
from worker.lease_heartbeat import LeaseLostError, Pulse

LEASE = jobs.Lease("job_1", "token", 1)


def down(*_: Any, **__: Any) -> Any:
    raise OperationalError("SELECT 1", {}, ConnectionError("down"))


def make_pulse(service: Service, heartbeat_seconds: float, lease_seconds: float) -> Pulse:
    settings = Settings(
        cancel_poll_seconds=0.01, heartbeat_seconds=heartbeat_seconds, lease_seconds=lease_seconds
    )
    return Pulse(service.store, LEASE, settings)


def test_without_a_database_the_lease_is_lost_when_it_ends(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "check", down)
    monkeypatch.setattr(jobs, "renew", down)
    with make_pulse(service, heartbeat_seconds=0.02, lease_seconds=0.1) as pulse:
        with pytest.raises(LeaseLostError):
            pulse.patiently(down)
        assert pulse.lost.is_set()


def test_a_database_that_comes_back_is_fine(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, False, True])
    monkeypatch.setattr(jobs, "check", down)

    def sometimes() -> str:
        return "done" if next(answers) else down()

    with make_pulse(service, heartbeat_seconds=500, lease_seconds=1000) as pulse:
        assert pulse.patiently(sometimes) == "done"
        assert not pulse.lost.is_set()
