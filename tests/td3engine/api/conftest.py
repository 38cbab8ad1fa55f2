"""One small log and the summary of it, made once for all tests of the public API."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

import td3engine as td3
from td3engine.contract import SUMMARY_FILES
from td3engine.data.types import Interactions
from td3engine.events import Event
from tests.td3engine.small import SMALL, write_small_log


@dataclass
class Made:
    """What `distill` made of a small log in a folder."""

    log_path: Path
    log: Interactions
    folder: Path
    summary: td3.Summary
    events: list[Event] = field(default_factory=list)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in SUMMARY_FILES}


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("api")
    path = write_small_log(folder / "log.csv")
    events: list[Event] = []
    summary = td3.distill(
        str(path), config=SMALL, seed=5, folder=folder / "summary", progress=events.append
    )
    return Made(path, td3.read_log(path), folder / "summary", summary, events)
