"""What settings that are `auto` stand for, by the log."""

from typing import Literal

Softmax = Literal["auto", "full", "sampled"]
SAMPLED_FROM = 50_000  # items, from which on `auto` samples: a step over all is slow
REPEATS_FROM = 0.1  # share of repeats, from which on `auto` validates among all items
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
    repeat_share: float,
) -> float:
    """The share of counting models in a target that a setting stands for.

    Steps with a sampled softmax have none. `auto` has none where users repeat: that has not been
    measured.
    """
    if softmax == "sampled":
        return 0.0
    if setting != "auto":
        return setting
    sparse = training_events < SPARSE_BELOW * n_items
    return COUNTING_SHARE if sparse and repeat_share < REPEATS_FROM else 0.0
