"""Runs give the bytes that they gave before (for two commits: `tests.golden --against REV`)."""

import json
from pathlib import Path

from tests.golden.kept import KEPT, compare
from tests.golden.runs import digests_and_figures, probe


def test_runs_give_the_kept_bytes(tmp_path: Path) -> None:
    digests, figures = digests_and_figures(tmp_path)
    found = {"probe": probe(), "digests": digests, "figures": figures}
    assert compare(json.loads(KEPT.read_text()), found) == []


def test_other_bytes_are_told() -> None:
    kept = {"probe": "a", "digests": {"x": "1"}, "figures": {"y": 1.0}}
    assert compare(kept, {**kept, "digests": {"x": "2"}}) == ["x: was 1, is 2"]
    elsewhere = {**kept, "probe": "b", "digests": {"x": "2"}}
    assert compare(kept, elsewhere) == []
    assert compare(kept, {**elsewhere, "figures": {"y": 1.2}}) == ["y: was 1, is 1.2"]
    assert compare(kept, {**kept, "digests": {}})
