"""Rows of results with given figures, for tests of what is made of rows."""

from typing import Any, cast

from td3engine.evaluation.table import Row
from td3engine.ranking.metrics import CUTOFFS


def made_up_row(name: str, ndcg: float = 0.1234, **changes: Any) -> Row:
    """A row of three seeds under protocol `all`; every other metric is `ndcg` as well."""
    row: dict[str, Any] = {
        "name": name,
        "mode": "from-scratch",
        "protocol": "all",
        "questions": 25_000,
        "seeds": 3,
        "train_seconds": 12.3,
        "making_seconds": 45.6,
        "numbers_stored": 2560,
        "bytes": 10_240,
        "sequences": 30,
    }
    for metric in ("hr", "ndcg", "mrr"):
        for k in CUTOFFS:
            row |= {f"{metric}@{k}": ndcg, f"{metric}@{k}_std": 0.0123}
    return cast(Row, row | changes)
