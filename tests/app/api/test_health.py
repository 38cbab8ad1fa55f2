"""Alive, and ready."""

from pathlib import Path

from sqlalchemy import text

from tests.app.api.conftest import Service, running, settings_for


def test_ready(each_service: Service) -> None:
    assert each_service.http.get("/healthz").json() == {"status": "ok"}
    answer = each_service.http.get("/readyz")
    assert answer.status_code == 200
    checks = {"database": "ok", "migrations": "ok", "broker": "ok", "disk": "ok"}
    assert answer.json() == {"ready": True, "checks": checks}


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
