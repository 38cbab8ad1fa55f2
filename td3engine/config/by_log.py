"""What settings that are `auto` stand for, by the log."""

from typing import Literal

Softmax = Literal["auto", "full", "sampled"]
SAMPLED_FROM = 50_000  # items, from which on `auto` samples: a step over all is slow
SPARSE_BELOW = 100  # training events an item, below which `auto` labels with counting models
COUNTING_SHARE = 0.7  # of these labels in a target


def softmax_over(n_items: int, setting: Softmax) -> Literal["full", "sampled"]:
    """The softmax that a setting stands for with this many items."""
    if setting != "auto":
        return setting
    return "sampled" if n_items >= SAMPLED_FROM else "full"


def share_of_counting(
    setting: float | Literal["auto"],
    softmax: Literal["full", "sampled"],
    *,
    training_events: int,
    n_items: int,
) -> float:
    """The share of counting models in a target that a setting stands for; a sample has none."""
    if softmax == "sampled":
        return 0.0
    if setting != "auto":
        return setting
    return COUNTING_SHARE if training_events < SPARSE_BELOW * n_items else 0.0
