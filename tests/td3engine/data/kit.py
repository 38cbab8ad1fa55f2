"""Logs as plain rows, and refusals, for tests of reading."""

from pathlib import Path
from typing import Any

import pytest

from td3engine.data.reading import read_log
from td3engine.data.types import Interactions, LogError

Row = tuple[str, str, int | float]


def rows(log: Interactions) -> list[Row]:
    """A log as plain rows, in its order."""
    return [
        (log.user_ids[user], log.item_ids[item], time)
        for user, item, time in zip(log.user_codes, log.item_codes, log.times.tolist(), strict=True)
    ]


def read_bytes(folder: Path, content: bytes, name: str = "log.csv", **options: Any) -> Interactions:
    """What a file of this content and name is read as."""
    path = folder / name
    path.write_bytes(content)
    return read_log(path, **options)


def refusal_of(source: Any, **options: Any) -> LogError:
    """What a file or a table is refused with."""
    with pytest.raises(LogError) as caught:
        read_log(source, **options)
    assert caught.value.message == str(caught.value)
    return caught.value


def refusal(folder: Path, content: bytes, name: str = "log.csv", **options: Any) -> LogError:
    """What a file of this content and name is refused with."""
    path = folder / name
    path.write_bytes(content)
    return refusal_of(path, **options)
