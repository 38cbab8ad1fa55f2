"""One run of faults on one service, from its first job to the verdict."""

import json
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.blobs.protocol import get_to_file
from app.blobs.sql import SqlBlobStore
from app.store.engine import Store
from app.store.models import Job
from tests.faults import chain_engine
from tests.faults.arena import REAL_ENGINE, SWEEP_SECONDS, Arena, wait_for
from tests.faults.chaos import Chaos, Kind
from tests.faults.traffic import Traffic
from tests.faults.verdict import Expected, Row, Verdict, judge, orphan_blobs
from tests.td3engine.small import small_config, write_small_log

logger = logging.getLogger(__name__)

REAL_CONFIG: dict[str, Any] = small_config(outer={"steps": 150, "validate_every": 50}).model_dump(
    mode="json"
)


@dataclass
class Outcome:
    """What a run has to tell."""

    rows: dict[str, Row]
    verdict: Verdict
    accepted: int
    refused: int
    seconds: float
    logs: str


def run(
    database_url: str, deck: Sequence[Kind], seed: int, *, real_engine: bool = False
) -> Outcome:
    """Strike a service with the faults of the deck, and judge what became of its jobs."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="td3-faults-") as name:
        folder = Path(name)
        log = write_small_log(folder / "log.csv")
        configs = [REAL_CONFIG] if real_engine else [{"seed": number} for number in range(200)]
        with Arena(database_url, folder, real_engine=real_engine) as arena:
            chaos = Chaos(arena, seed)
            in_flight = 2 if real_engine else 6
            with Traffic(arena.url, log, configs, seed, in_flight=in_flight) as traffic:
                chaos.strike(deck)
                traffic.stop()
                chaos.configure()
            expected = _real(arena.store, folder) if real_engine else _chain(arena.store)
            logger.info("judging")
            _let_it_be_swept(arena)
            verdict = judge(arena.store, traffic.accepted, arena.journal, arena.url, expected)
            left = [str(path) for path in (folder / "data" / "work").iterdir()]
            left += [f"engine {pid}" for pid in arena.engines()]
        left += _gone(arena)
        verdict.wrong += [f"left behind: {thing}" for thing in left]
        return Outcome(
            chaos.rows,
            verdict,
            accepted=len(traffic.accepted),
            refused=traffic.failures,
            seconds=time.monotonic() - began,
            logs=arena.logs(),
        )


def _let_it_be_swept(arena: Arena) -> None:
    """Wait for what the janitors do: the verdict tells whether they did."""
    work = arena.folder / "data" / "work"
    for folder in work.iterdir():
        os.utime(folder, (0, 0))  # young ones are spared for a minute
    with suppress(TimeoutError):
        wait_for(
            lambda: not orphan_blobs(arena.store) and not list(work.iterdir()),
            SWEEP_SECONDS + 30,
            "the sweep",
        )


def _gone(arena: Arena) -> list[str]:
    """What survives the end of the service."""
    with suppress(TimeoutError):
        wait_for(lambda: not arena.survivors(), 10, "the end of all processes")
    return arena.survivors()


def _chain(store: Store) -> Expected:
    logs: dict[str, bytes] = {}

    def expected(job: Job, fingerprint: str) -> dict[str, bytes]:
        if fingerprint not in logs:
            logs[fingerprint] = b"".join(SqlBlobStore(store).open_reader(fingerprint))
        return chain_engine.expected(logs[fingerprint], job.config["seed"])

    return expected


def _real(store: Store, folder: Path) -> Expected:
    """What the real engine makes of a log when nobody disturbs it."""
    made: dict[str, dict[str, bytes]] = {}

    def expected(job: Job, fingerprint: str) -> dict[str, bytes]:
        if fingerprint not in made:
            here = folder / "undisturbed" / fingerprint
            out = here / "out"
            out.mkdir(parents=True)
            get_to_file(SqlBlobStore(store), fingerprint, here / "log.parquet")
            (here / "config.json").write_text(json.dumps(job.config))
            files = ("--data", here / "log.parquet", "--config", here / "config.json")
            command = [*REAL_ENGINE, *map(str, files), "--out", str(out)]
            subprocess.run(command, check=True, capture_output=True)
            made[fingerprint] = {name: (out / name).read_bytes() for name in chain_engine.NAMES}
        return made[fingerprint]

    return expected


def merge(outcomes: Sequence[Outcome]) -> tuple[dict[str, Row], Verdict]:
    """One table of several runs."""
    rows: dict[str, Row] = {}
    whole = Verdict()
    for outcome in outcomes:
        for name, row in outcome.rows.items():
            sum_ = rows.setdefault(name, Row())
            sum_.injected += row.injected
            sum_.jobs |= row.jobs
            sum_.orphans += row.orphans
        verdict = outcome.verdict
        whole.lost |= verdict.lost
        whole.doubled |= verdict.doubled
        whole.wrong += verdict.wrong
        whole.resumed += verdict.resumed
        whole.checked_bytes += verdict.checked_bytes
        for state, count in verdict.states.items():
            whole.states[state] = whole.states.get(state, 0) + count
    return rows, whole
