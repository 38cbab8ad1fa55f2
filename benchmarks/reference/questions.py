"""The protocol of the references, in plain Python: nothing of it is the project's.

Users and items with at least 5 interactions in the raw log stay, ties in time in file order. A
user's last event is for test, the one before it for validation; users with fewer than 3 events are
trained on only. A test question's history includes the validation item. `all` ranks each target
among all items of the filtered log; `unseen` asks only for targets that are new to their user,
among the items that are new to the user. Ties count against the model. `unseen` chooses a model's
epochs, or `all` where at least a tenth of the training and validation events repeat an item.
"""

import csv
import gzip
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

CUTOFFS = (5, 10, 20)
LEAST = 5
REPEATS = 0.1

# The items before a target, oldest first, and the target.
Question = tuple[list[int], int]


def read_log(path: Path) -> list[list[int]]:
    """Items of every user that stays, oldest first, as numbers from 0 on.

    Raises:
        ValueError: a column is missing.
    """
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "rt", encoding="utf-8") as file:
        rows = csv.reader(file, delimiter="\t" if path.suffix == ".inter" else ",")
        header = [name.partition(":")[0] for name in next(rows)]
        if not {"user_id", "item_id", "timestamp"} <= set(header):
            raise ValueError(f"{path} has the columns {header}")
        user, item, moment = (header.index(n) for n in ("user_id", "item_id", "timestamp"))
        events = [(row[user], row[item], float(row[moment])) for row in rows]
    of_user = Counter(event[0] for event in events)
    of_item = Counter(event[1] for event in events)
    kept = [e for e in events if of_user[e[0]] >= LEAST and of_item[e[1]] >= LEAST]
    numbers: dict[str, int] = {}
    histories: dict[str, list[int]] = {}
    # A stable sort: ties keep their order in the file.
    for name, met, _ in sorted(kept, key=lambda event: event[2]):
        histories.setdefault(name, []).append(numbers.setdefault(met, len(numbers)))
    return list(histories.values())


@dataclass(frozen=True)
class Split:
    """A log cut by leave-one-out."""

    training: list[list[int]]
    validation: list[Question]
    test: list[Question]
    items: int
    repeats: float

    @property
    def protocol(self) -> str:
        """The one that chooses epochs."""
        return "all" if self.repeats >= REPEATS else "unseen"


def split(histories: list[list[int]]) -> Split:
    """The last event of a user with three or more for test, the one before it for validation."""
    long = [items for items in histories if len(items) >= 3]
    seen = [items[:-1] if len(items) >= 3 else items for items in histories]
    events = sum(len(items) for items in seen)
    return Split(
        training=[items[:-2] if len(items) >= 3 else items for items in histories],
        validation=[(items[:-2], items[-2]) for items in long],
        test=[(items[:-1], items[-1]) for items in long],
        items=1 + max(max(items) for items in histories),
        repeats=(events - sum(len(set(items)) for items in seen)) / events,
    )


def pieces(items: list[int], length: int) -> list[list[int]]:
    """Cut from the end into pieces of `length` + 1 that share one event: each transition once."""
    ends = range(len(items), 1, -length)
    return [items[max(0, end - length - 1) : end] for end in ends]


def ranks(scores: Tensor, questions: list[Question], protocol: str) -> list[int]:
    """Rank of each question's target from 1 on, ties against it. `scores` is questions x items.

    Under `unseen`, questions whose target is in their history are left out.
    """
    asked = [
        n for n, (met, target) in enumerate(questions) if protocol == "all" or target not in met
    ]
    if not asked:
        return []
    targets = torch.tensor([questions[n][1] for n in asked])
    chosen = scores[asked]
    rivals = chosen >= chosen.gather(1, targets[:, None])
    if protocol == "unseen":
        for row, n in enumerate(asked):
            rivals[row, questions[n][0]] = False
    # The target is one of its rivals.
    return [int(count) for count in rivals.sum(dim=1)]


def metrics(found: list[int]) -> dict[str, float]:
    """Means over the questions, by the ranks of their targets."""
    rank = torch.tensor(found, dtype=torch.float64)
    result: dict[str, float] = {"questions": len(found)}
    for k in CUTOFFS:
        hit = (rank <= k).double()
        result[f"ndcg@{k}"] = round(float((hit / torch.log2(rank + 1)).mean()), 6)
        result[f"hr@{k}"] = round(float(hit.mean()), 6)
        result[f"mrr@{k}"] = round(float((hit / rank).mean()), 6)
    return result
