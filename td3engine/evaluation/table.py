"""Rows of results, and the tables that show them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict, cast

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table

from td3engine.config import Mode
from td3engine.ranking.metrics import Metrics
from td3engine.ranking.protocols import Protocol

Row = TypedDict(
    "Row",
    {
        "name": str,
        "mode": Mode,
        "protocol": Protocol,
        "questions": int,
        "seeds": int,
        "hr@5": float,
        "hr@5_std": float,
        "hr@10": float,
        "hr@10_std": float,
        "hr@20": float,
        "hr@20_std": float,
        "ndcg@5": float,
        "ndcg@5_std": float,
        "ndcg@10": float,
        "ndcg@10_std": float,
        "ndcg@20": float,
        "ndcg@20_std": float,
        "mrr@5": float,
        "mrr@5_std": float,
        "mrr@10": float,
        "mrr@10_std": float,
        "mrr@20": float,
        "mrr@20_std": float,
        "train_seconds": NotRequired[float],
        "making_seconds": NotRequired[float],
        "numbers_stored": int,
        "bytes": int,
        "sequences": int,
    },
)

# Wall times: a manifest has none, and only the run that made a summary knows its second one.
WALL_TIMES = ("train_seconds", "making_seconds")
NUMBER = 4  # bytes of a stored number or item index
INTERACTION = 16  # bytes of a stored interaction: user, item and a time of eight
# Names of rows; those of counting models are in `counting.fitting`.
TEACHER, FULL_DATA = "teacher", "full data"
COUNTING_MIXED = "counting, mixed"
LABELLED, LABELLED_SAME_BYTES = "labelled users", "labelled, same bytes"
INITIAL, SUMMARY = "initial summary", "TD3 summary"


@dataclass(frozen=True)
class Cost:
    """What a row's model needs.

    Attributes:
        train_seconds: wall time of one training, up to its best state.
        numbers_stored: size of the training data, in numbers (of real events, interactions).
        bytes: what must be stored to train the model (of a model that is shipped as it is, to use
            it), uncompressed and without item ids: 4 a number or an item index, 16 an interaction.
        sequences: how many rows of training data there are.
        making_seconds: wall time of making the training data out of log and teacher.
    """

    train_seconds: float
    numbers_stored: int
    bytes: int
    sequences: int = 0
    making_seconds: float = 0.0


def make_row(
    name: str, mode: Mode, protocol: Protocol, results: Sequence[Metrics], cost: Cost
) -> Row:
    """Mean and sample standard deviation of each metric; 0 for one seed.

    Args:
        name: of the model or its training data.
        mode: of the learners.
        protocol: of the ranking.
        results: the metrics of each seed.
        cost: of the model.
    """
    figures: Metrics = {}
    for metric in results[0]:
        if metric == "questions":  # the same for all seeds
            continue
        values = [result[metric] for result in results]
        figures[metric] = float(np.mean(values))
        figures[f"{metric}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    row = {
        "name": name,
        "mode": mode,
        "protocol": protocol,
        "questions": int(results[0]["questions"]),
        "seeds": len(results),
        **figures,
        **vars(cost),
    }
    return cast(Row, row)


def make_rows(
    name: str, mode: Mode, results: Sequence[Mapping[Protocol, Metrics]], cost: Cost
) -> list[Row]:
    """`make_row` for each protocol of the results, which are the metrics of each seed."""
    return [
        make_row(name, mode, protocol, [result[protocol] for result in results], cost)
        for protocol in results[0]
    ]


def without_wall_times(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as a manifest has them: wall times differ from run to run, its bytes must not."""
    return [{key: value for key, value in row.items() if key not in WALL_TIMES} for row in rows]


def results_table(rows: Sequence[Row]) -> Group:
    """One table a protocol. Names wrap where it is wider than the console; nothing is cut.

    `mode` is short for `shared-items` or `from-scratch`. `share` is of the teacher's NDCG@10, or of
    the full-data network's where the rows have no teacher. `made s` is the wall time of making the
    training data, `train s` that of one training up to its best state, `KiB` what must be stored.
    """
    return Group(
        *(
            _table(protocol, [row for row in rows if row["protocol"] == protocol])
            for protocol in dict.fromkeys(row["protocol"] for row in rows)
        )
    )


def _yardstick(rows: Sequence[Row]) -> float:
    """NDCG@10 that shares refer to; NaN where there is nothing."""
    by_name = {row["name"]: row["ndcg@10"] for row in rows}
    yardsticks = (TEACHER, FULL_DATA, COUNTING_MIXED)
    return next((by_name[name] for name in yardsticks if name in by_name), math.nan)


def _table(protocol: Protocol, rows: Sequence[Row]) -> Table:
    questions = max(row["questions"] for row in rows)
    table = Table(
        title=f"\nOn the test events, protocol `{protocol}`, {questions:,} questions",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    table.add_column("model", overflow="fold")
    table.add_column("mode", no_wrap=True)
    for name in ("HR@10", "NDCG@10", "share", "made s", "train s", "KiB"):
        table.add_column(name, justify="right", no_wrap=True)
    best = _yardstick(rows)
    for row in rows:
        share = row["ndcg@10"] / best if best else math.nan
        table.add_row(
            row["name"],
            row["mode"].removeprefix("from-").removesuffix("-items"),
            f"{row['hr@10']:.4f}",
            _plus_minus(row["ndcg@10"], row["ndcg@10_std"], row["seeds"]),
            "-" if math.isnan(share) else f"{share:.0%}",
            _seconds(row, "making_seconds"),
            _seconds(row, "train_seconds"),
            _kib(row),
        )
    return table


def _seconds(row: Row, key: Literal["making_seconds", "train_seconds"]) -> str:
    """Empty where it is not known."""
    if key not in row:
        return ""
    return f"{row[key]:.1f}" if row[key] < 1000 else f"{row[key]:,.0f}"


def _kib(row: Row) -> str:
    kib = row["bytes"] / 1024
    return f"{kib:.1f}" if kib < 10 else f"{kib:,.0f}"


def _plus_minus(mean: float, std: float, seeds: int) -> str:
    return f"{mean:.4f} ±{std:.4f}" if seeds > 1 else f"{mean:.4f}        "
