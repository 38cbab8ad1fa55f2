"""A large upload leaves the API's memory flat; benchmarks/upload_memory.py does it with 1 GB."""

from pathlib import Path

from benchmarks.upload_memory import measure


def test_an_upload_leaves_the_memory_flat(tmp_path: Path) -> None:
    figures = measure(100, tmp_path)
    assert figures["rows"] == 100 * 250
    assert figures["growth_mib"] < 50
