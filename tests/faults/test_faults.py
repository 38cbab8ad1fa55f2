"""A few faults of every sort, each time; `make faults` runs many more, on top of each other."""

import pytest

from tests.faults.chaos import Kind
from tests.faults.injections import FAULTS, POINTS
from tests.faults.run import run
from tests.faults.verdict import table

SEED = 1
NAMES = {
    "sqlite": (
        "kill -9 at create:committed",
        "kill -9 at set_checkpoint:uncommitted",
        "kill -9 at release:before",
        "engine: hangs",
        "broker: kill -9, data lost",
        "clock: ahead by an hour, then back",
    ),
    "postgresql": (
        "kill -9 at succeed:before",
        "stop at succeed:uncommitted",
        "worker: stopped past its lease",
        "delivery: doubled",
        "database: unreachable",
        "disk: full for a worker",
    ),
}


@pytest.mark.parametrize("database", NAMES)
def test_every_job_survives(database: str, request: pytest.FixtureRequest) -> None:
    url: str = request.getfixturevalue(f"{database}_url")
    kinds: list[Kind] = [kind for kind in (*FAULTS, *POINTS) if kind.name in NAMES[database]]
    outcome = run(url, kinds, SEED)
    told = f"{table(outcome.rows, outcome.verdict)}\n{outcome.logs}"
    assert outcome.verdict.complaints() == [], told
    assert {name: row.injected for name, row in outcome.rows.items()} == dict.fromkeys(
        NAMES[database], 1
    ), told
    assert outcome.verdict.states.get("succeeded"), told
