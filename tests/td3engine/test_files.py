"""Files written whole or not at all: the name stands for a complete file at every moment."""

import io
import os
from pathlib import Path

import pytest

from td3engine.errors import OutputExistsError, UnusableError
from td3engine.files import atomic_file, new_file


def test_a_file_takes_the_place_of_an_older_one_only_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_written_is_synced_before_the_name_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "out", []

    def sync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_size, path.exists()))

    monkeypatch.setattr("td3engine.files.os.fsync", sync)
    with atomic_file(path) as file:
        file.write(b"seven..")
    assert synced == [(7, False)]


def test_a_block_may_close_its_file(tmp_path: Path) -> None:
    with new_file(tmp_path / "out") as file, io.TextIOWrapper(file, "utf-8") as text:
        text.write("é")
    assert (tmp_path / "out").read_bytes() == "é".encode()


@pytest.mark.parametrize("older", [None, b"old"])
def test_an_error_leaves_everything_as_it_was(tmp_path: Path, older: bytes | None) -> None:
    path = tmp_path / "out"
    if older is not None:
        path.write_bytes(older)
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert [each.read_bytes() for each in tmp_path.iterdir()] == ([] if older is None else [older])


def test_a_fixed_part_overwrites_what_a_killed_process_left(tmp_path: Path) -> None:
    path, part = tmp_path / "out", tmp_path / "out.part"
    part.write_bytes(b"longer than what comes")
    with atomic_file(path, part) as file:
        file.write(b"short")
    assert path.read_bytes() == b"short"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_path_do_not_share_a_part(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic_file(path) as outer:
        outer.write(b"outer")
        with atomic_file(path) as inner:
            inner.write(b"inner")
        assert path.read_bytes() == b"inner"
    assert path.read_bytes() == b"outer"


def test_a_new_file_replaces_none(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with pytest.raises(OutputExistsError, match=r"out exists already"), new_file(path):
        pytest.fail("the block ran")
    with pytest.raises(UnusableError, match=r"no folder .*absent"), new_file(tmp_path / "absent/x"):
        pytest.fail("the block ran")
    assert list(tmp_path.iterdir()) == [path]
