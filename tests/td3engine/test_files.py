"""Files written whole or not at all."""

import os
from pathlib import Path

import pytest

from td3engine.errors import OutputExistsError, UnusableError
from td3engine.files import refuse_unwritable, whole_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("replace", [False, True])
def test_the_name_comes_with_the_whole_content(tmp_path: Path, replace: bool) -> None:
    out = tmp_path / "out"
    with whole_file(out, replace=replace) as file:
        file.write(b"whole")
        assert not out.exists()
    assert out.read_bytes() == b"whole"
    assert names(tmp_path) == ["out"]


def test_the_block_may_close_the_file(tmp_path: Path) -> None:
    with whole_file(tmp_path / "out") as file:
        file.write(b"whole")
        file.close()
    assert (tmp_path / "out").read_bytes() == b"whole"


@pytest.mark.parametrize("replace", [False, True])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, replace: bool) -> None:
    out = tmp_path / "out"
    before = [b"mine"] if replace else []
    for content in before:
        out.write_bytes(content)
    with pytest.raises(KeyboardInterrupt), whole_file(out, replace=replace) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert [path.read_bytes() for path in tmp_path.iterdir()] == before


def test_a_file_is_replaced_only_where_that_is_meant(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="out exists already"), whole_file(out):
        pytest.fail("it opened")
    assert out.read_bytes() == b"mine"
    with whole_file(out, replace=True) as file:
        file.write(b"new")
        assert out.read_bytes() == b"mine"
    assert out.read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


def test_what_cannot_be_written_is_refused_before(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"")
    with pytest.raises(OutputExistsError):
        refuse_unwritable(tmp_path / "there")
    for absent in (tmp_path / "no" / "out", tmp_path / "there" / "out"):
        with pytest.raises(UnusableError, match="no folder"):
            refuse_unwritable(absent)
        with pytest.raises(UnusableError, match="no folder"), whole_file(absent, replace=True):
            pytest.fail("it opened")
    refuse_unwritable(tmp_path / "new")
    assert names(tmp_path) == ["there"]


def test_a_part_that_another_thread_is_writing_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with whole_file(out) as file:
        file.write(b"first")
        with pytest.raises(FileExistsError), whole_file(out):
            pytest.fail("it opened")
    assert out.read_bytes() == b"first"


def test_content_is_on_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    sync, out = os.fsync, tmp_path / "out"

    def counted(descriptor: int) -> None:
        assert not out.exists()
        synced.append(os.fstat(descriptor).st_size)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    with whole_file(out) as file:
        file.write(b"x" * 1000)
    assert synced == [1000]
