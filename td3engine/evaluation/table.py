"""Rows of results, and the tables that show them."""

from collections.abc import Mapping, Sequence
from typing import TypedDict, cast

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
        "train_seconds": float,
        "numbers_stored": int,
        "sequences": int,
    },
)


def make_row(
    name: str,
    mode: Mode,
    protocol: Protocol,
    results: Sequence[Metrics],
    *,
    train_seconds: float,
    numbers_stored: int,
    sequences: int,
) -> Row:
    """Mean and sample standard deviation of each metric; 0 for one seed.

    Args:
        name: of the model or its training data.
        mode: of the learners.
        protocol: of the ranking.
        results: the metrics of each seed.
        train_seconds: wall time of one training, up to its best state.
        numbers_stored: size of the training data, in numbers (of real events, interactions).
        sequences: how many rows of training data there are.
    """
    figures: dict[str, float] = {}
    questions = results[0]["questions"]
    for metric in [name for name in results[0] if name != "questions"]:
        values = [result[metric] for result in results]
        figures[metric] = float(np.mean(values))
        figures[f"{metric}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    row = {
        "name": name,
        "mode": mode,
        "protocol": protocol,
        "questions": questions,
        "seeds": len(results),
        **figures,
        "train_seconds": train_seconds,
        "numbers_stored": numbers_stored,
        "sequences": sequences,
    }
    return cast(Row, row)


def make_rows(
    name: str,
    mode: Mode,
    results: Sequence[Mapping[Protocol, Metrics]],
    *,
    train_seconds: float,
    numbers_stored: int,
    sequences: int,
) -> list[Row]:
    """`make_row` for each protocol of the results, which are the metrics of each seed."""
    return [
        make_row(
            name,
            mode,
            protocol,
            [result[protocol] for result in results],
            train_seconds=train_seconds,
            numbers_stored=numbers_stored,
            sequences=sequences,
        )
        for protocol in results[0]
    ]


def results_table(rows: Sequence[Row]) -> Group:
    """One table a protocol, at most 80 columns wide.

    `train s` is the wall time of one training up to its best state. `stored` is the size of the
    training data, in numbers, or for real sequences in interactions.
    """
    return Group(
        *(
            _table(protocol, [row for row in rows if row["protocol"] == protocol])
            for protocol in dict.fromkeys(row["protocol"] for row in rows)
        )
    )


def _table(protocol: Protocol, rows: Sequence[Row]) -> Table:
    table = Table(
        title=f"On the test events, protocol `{protocol}`, {rows[0]['questions']:,} questions",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name in ("trained on", "mode"):
        table.add_column(name, no_wrap=True)
    for name in ("HR@10", "NDCG@10", "train s", "stored"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"],
            row["mode"],
            _plus_minus(row["hr@10"], row["hr@10_std"], row["seeds"]),
            _plus_minus(row["ndcg@10"], row["ndcg@10_std"], row["seeds"]),
            f"{row['train_seconds']:.1f}",
            f"{row['numbers_stored']:,}",
        )
    return table


def _plus_minus(mean: float, std: float, seeds: int) -> str:
    return f"{mean:.4f} ±{std:.4f}" if seeds > 1 else f"{mean:.4f}        "
