"""What settings that are `auto` stand for, by the log."""

from typing import Literal

Softmax = Literal["auto", "full", "sampled"]
Support = Literal["auto", "all"] | int
# Items, from which on `auto` samples, since a step over all is slow: in a teacher's steps, and in
# those of the outer loop, where a sample costs no quality from fewer items on.
SAMPLED_FROM = 50_000
OUTER_SAMPLED_FROM = 10_000
SUPPORT_FROM = 10_000  # items, from which on `auto` scores a part of them one by one
SUPPORT = 1024  # items of that part
REPEATS_FROM = 0.1  # share of repeats, from which on `auto` validates among all items
SPARSE_BELOW = 100  # training events an item, below which `auto` labels with counting models
COUNTING_SHARE = 0.7  # of these labels in a target


def softmax_over(
    n_items: int, setting: Softmax, sampled_from: int = SAMPLED_FROM
) -> Literal["full", "sampled"]:
    """The softmax that a setting stands for with this many items."""
    if setting != "auto":
        return setting
    return "sampled" if n_items >= sampled_from else "full"


def support_of(n_items: int, setting: Support) -> int | None:
    """How many items a synthetic position scores one by one; None: all."""
    if setting == "auto":
        return SUPPORT if n_items >= SUPPORT_FROM else None
    return None if setting == "all" or setting >= n_items else setting


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
