"""The checkpoint file by itself: identity, due times, and writes that fail."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from td3engine.contract import CHECKPOINT_FILE
from td3engine.errors import CheckpointMismatchError, DamagedCheckpointError
from td3engine.pipeline.checkpoint import Checkpoint
from td3engine.runtime.distributed import ProcessGroup

CPU = torch.device("cpu")
IDENTITY = {"fingerprint": "f", "config": "c"}


def checkpoint(folder: Path, identity: dict[str, str] = IDENTITY, least: float = 0) -> Checkpoint:
    return Checkpoint(folder, identity, least, ProcessGroup(), CPU)


def write(target: Checkpoint, **state: Any) -> list[Path]:
    written: list[Path] = []
    target.write(lambda: state, lambda: {"distilling": 1.5}, written.append)
    return written


def test_what_is_written_is_read_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT_FILE
    assert checkpoint(tmp_path).read() == {}
    assert write(checkpoint(tmp_path), step=3, U=torch.arange(4.0)) == [path]
    assert [each.name for each in tmp_path.iterdir()] == [CHECKPOINT_FILE]
    stored = checkpoint(tmp_path).read()
    assert stored["step"] == 3
    assert stored["seconds"] == {"distilling": 1.5}
    assert stored["U"].tolist() == [0, 1, 2, 3]
    assert torch.load(path, weights_only=True)["fingerprint"] == "f"
    checkpoint(tmp_path).remove()
    checkpoint(tmp_path).remove()  # there is none: that is fine
    assert checkpoint(tmp_path).read() == {}


@pytest.mark.parametrize(
    "other", [{"fingerprint": "g", "config": "c"}, {"fingerprint": "f", "config": "d"}]
)
def test_another_runs_checkpoint_is_refused(tmp_path: Path, other: dict[str, str]) -> None:
    write(checkpoint(tmp_path))
    with pytest.raises(CheckpointMismatchError, match=CHECKPOINT_FILE):
        checkpoint(tmp_path, other).read()


def test_a_file_without_an_identity_is_another_runs(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(CheckpointMismatchError, match="belongs to another"):
        checkpoint(tmp_path).read()


def damage(content: bytes, kind: str) -> bytes:
    middle = len(content) // 2
    return {
        "empty": b"",
        "cut": content[:middle],
        "its start": content[:3],
        "text": b"no checkpoint\n" * 9,
        "zeros": bytes(len(content)),
        "flipped": content[:40] + bytes(40) + content[80:],
        "pickle of a list": pickle.dumps([1]),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["empty", "cut", "its start", "text", "zeros", "flipped", "pickle of a list"]
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, kind: str) -> None:
    write(checkpoint(tmp_path), step=3, U=torch.arange(4.0))
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(damage(path.read_bytes(), kind))
    with pytest.raises(DamagedCheckpointError, match=f"{path} is damaged") as caught:
        checkpoint(tmp_path).read()
    assert len(str(caught.value).splitlines()) == 1


def test_a_write_that_fails_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(checkpoint(tmp_path), step=1)

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", no_space)
        with pytest.raises(OSError, match="No space"):
            write(checkpoint(tmp_path), step=2)
    assert checkpoint(tmp_path).read()["step"] == 1
    write(checkpoint(tmp_path), step=2)
    assert checkpoint(tmp_path).read()["step"] == 2


def test_zero_seconds_is_always_due_and_others_wait(tmp_path: Path) -> None:
    assert checkpoint(tmp_path).is_due
    patient = checkpoint(tmp_path, least=1000)
    assert not patient.is_due
    write(patient)
    assert not patient.is_due
