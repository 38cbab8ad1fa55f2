"""All faults, on every kind of service: `python -m tests.faults [--faults N] [--seed N]`."""

import argparse
import secrets
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.faults.run import Outcome, merge
from tests.faults.services import SERVICES, run_on
from tests.faults.verdict import table


def main() -> int:
    """Run them, print the table; the exit code is 1 when something is not as it has to be."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=220, help="at least (default: 220)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    options = parser.parse_args()
    say(f"seed {options.seed}")
    share = -(-options.faults * 11 // 20)  # a tenth more: some find nothing to strike
    with ProcessPoolExecutor(len(SERVICES), get_context("spawn")) as pool:
        runs = {name: pool.submit(run_on, name, share, options.seed) for name in SERVICES}
        outcomes = {name: run.result() for name, run in runs.items()}
    for name, outcome in outcomes.items():
        say(f"{name}: {describe(outcome)}")
    rows, verdict = merge(list(outcomes.values()))
    say("\n" + table(rows, verdict))
    injected = sum(row.injected for row in rows.values())
    if injected < options.faults:
        verdict.wrong.append(f"{injected} of {options.faults} faults found something to strike")
    if complaints := verdict.complaints():
        logs = "\n".join(outcome.logs for outcome in outcomes.values())
        say("\n".join([logs, "", *complaints, "", f"seed {options.seed}"]))
        return 1
    return 0


def describe(outcome: Outcome) -> str:
    """A run in a line."""
    states = ", ".join(
        f"{count} {state}" for state, count in sorted(outcome.verdict.states.items())
    )
    return (
        f"{sum(row.injected for row in outcome.rows.values())} faults, {outcome.accepted} jobs"
        f" accepted ({states}), {outcome.verdict.resumed} succeeded after more than one attempt,"
        f" {outcome.verdict.checked_bytes} bytes compared, {outcome.refused} requests failed,"
        f" {outcome.seconds:.0f} s"
    )


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
