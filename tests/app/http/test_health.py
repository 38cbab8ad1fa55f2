"""Alive, and ready."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from app.store.migrate import upgrade
from tests import servers
from tests.app.http.kit import Service, problem, running, settings_for, wait_for
from tests.faults.proxy import Proxy


def test_ready(each_service: Service) -> None:
    assert each_service.http.get("/healthz").json() == {"status": "ok"}
    answer = each_service.http.get("/readyz")
    assert answer.status_code == 200
    names = ["database", "migrations", "blobs", "broker", "disk"]
    assert answer.json() == {"ready": True, "checks": dict.fromkeys(names, "ok")}


def test_tables_of_another_release(service: Service) -> None:
    with service.store.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    answer = service.http.get("/readyz")
    assert answer.status_code == 503
    body = answer.json()
    assert body["ready"] is False
    assert body["checks"]["database"] == body["checks"]["broker"] == "ok"
    assert "0000" in body["checks"]["migrations"]


def test_too_little_room_for_uploads(sqlite_url: str, broker_url: str, tmp_path: Path) -> None:
    settings = settings_for(sqlite_url, broker_url, tmp_path, ready_free_bytes=2**62)
    with running(settings) as service:
        answer = service.http.get("/readyz")
        assert answer.status_code == 503
        assert "are free in data_dir" in answer.json()["checks"]["disk"]


def test_nothing_answers(tmp_path: Path) -> None:
    database_url = "postgresql://td3:secret@127.0.0.1:1/td3"
    broker_url = f"redis+socket://{tmp_path}/none.sock"
    with running(settings_for(database_url, broker_url, tmp_path)) as service:
        answer = service.http.get("/readyz")
        assert answer.status_code == 503
        checks = answer.json()["checks"]
        assert checks["database"].startswith("does not answer")
        assert checks["broker"].startswith("does not answer")
        assert "secret" not in answer.text
        assert service.http.get("/healthz").status_code == 200


def test_a_frozen_database(postgresql_url: str, broker_url: str, tmp_path: Path) -> None:
    """It accepts connections and says nothing. What asks it is answered all the same."""
    there = make_url(postgresql_url)
    with Proxy(str(there.host), there.port or 5432) as proxy:
        url = there.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        with running(settings_for(url, broker_url, tmp_path)) as service:
            job = f"/jobs/{service.new_job()['id']}"
            service.http.get(job).raise_for_status()
            assert service.http.get("/readyz").status_code == 200
            proxy.freeze()
            with ThreadPoolExecutor(50) as clients:  # more than the server has threads
                answers = list(clients.map(service.http.get, ["/readyz"] * 50))
            late = "does not answer within 3 seconds"
            stored = dict.fromkeys(["database", "migrations", "blobs"], late)
            checks = {**stored, "broker": "ok", "disk": "ok"}
            assert [answer.json()["checks"] for answer in answers] == [checks] * 50
            problem(service.http.get(job), 503, "database_unavailable")
            proxy.thaw()
            wait_for(lambda: service.http.get("/readyz").status_code == 200)
            service.http.get(job).raise_for_status()


def test_a_standby_that_takes_over(broker_url: str, tmp_path: Path) -> None:
    """Until then it only reads: what would write is worth another try."""
    try:
        with (
            servers.postgresql_standby(upgrade) as standby,
            running(settings_for(standby.url, broker_url, tmp_path)) as service,
        ):
            service.http.get("/jobs").raise_for_status()
            problem(service.upload(), 503, "database_unavailable")
            answer = service.http.get("/readyz")
            assert answer.status_code == 503
            assert "only reads" in answer.json()["checks"]["database"]
            standby.control("promote")
            assert service.http.get("/readyz").status_code == 200
            assert service.upload().status_code == 201
    except servers.NoPostgresError as error:
        pytest.skip(str(error))
