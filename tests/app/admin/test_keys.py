"""The command `td3 keys`."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from app.admin.keys import main
from app.http.auth import Authenticator, Caller
from app.settings import Settings
from app.store import tenants
from app.store.engine import open_store
from app.store.migrate import upgrade
from app.store.quotas import Quotas
from tests.app.http.kit import bearer


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "new"


def run(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["--data-dir", str(folder), *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(folder, capsys, "create", "ci", "--tenant", "acme", "--scope", "read")
    assert code == 0, err
    key = out.removesuffix("\n")
    store = open_store(Settings(data_dir=folder).database_url)
    authenticator = Authenticator(Settings(data_dir=folder), store)

    def admit() -> Caller:
        return asyncio.run(
            authenticator.authenticate("GET", "/jobs", Headers(bearer(key)), local=False)
        )

    caller = admit()
    assert (caller.tenant_id, caller.scope) == ("acme", "read")
    assert str(caller.key_id) in err
    assert "tables" in err  # whoever is in the wrong folder has just made a database there

    _, out, err = run(folder, capsys, "create", "soon over", "--expires-in-days", "2")
    assert "tables" not in err
    code, listed, _ = run(folder, capsys, "list")
    assert code == 0
    heading, second, first = listed.splitlines()
    assert heading.split() == ["id", "tenant", "scope", "state", "created", "last", "used", "name"]
    assert first.split()[:4] == [caller.key_id, "acme", "read", "good"]
    assert "until" in second
    assert out.strip() not in listed

    assert caller.key_id is not None
    assert run(folder, capsys, "revoke", caller.key_id)[:2] == (0, f"{caller.key_id} is revoked\n")
    with pytest.raises(Exception, match="was revoked"):
        admit()
    assert "revoked" in run(folder, capsys, "list")[1]
    store.close()


def test_what_the_command_refuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(folder, capsys, "revoke", "key_none")
    assert (code, "there is no key" in err) == (1, True)
    for wrong in (
        ["create", "x", "--tenant", "A b"],
        ["create", "x", "--scope", "all"],
        ["create", "x", "--expires-in-days", "0"],
        ["create", "x", "--expires-in-days", "36501"],
        ["create", "x", "--expires-in-days", "1e300"],
        ["create", "x", "--expires-in-days", "inf"],
        ["create", "x", "--expires-in-days", "nan"],
        ["create", "a\nb"],
        [],
    ):
        with pytest.raises(SystemExit):
            run(folder, capsys, *wrong)


def test_an_old_database_is_not_migrated_by_the_way(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upgrade(Settings(data_dir=folder).database_url, "0001")
    code, _, err = run(folder, capsys, "create", "x")
    assert (code, "app.store.migrate" in err) == (1, True)


def test_quotas_of_a_tenant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def quotas(*given: str) -> dict[str, str]:
        code = main(["--data-dir", str(tmp_path), "quotas", "acme", *given])
        out, err = capsys.readouterr()
        assert code == 0, err
        return dict(line.split("=") for line in out.splitlines())

    assert main(["--data-dir", str(tmp_path), "quotas", "acme"]) == 1
    assert "no tenant 'acme'" in capsys.readouterr().err  # a look makes none
    assert quotas("rows=5", "active_jobs=2")["rows"] == "5"
    left = quotas("rows=default")
    default = str(Quotas.model_fields["rows"].default)
    assert (left["rows"], left["active_jobs"]) == (default, "2")
    assert quotas() == left
    store = open_store(Settings(data_dir=tmp_path).database_url)
    with store.read() as session:
        assert tenants.overrides(session, "acme") == {"active_jobs": 2}
    store.close()
    assert main(["--data-dir", str(tmp_path), "quotas", "acme", "jobs=2"]) == 1
