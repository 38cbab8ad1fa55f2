"""Padded rows of real histories against a plain Python account of their events."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from td3engine.models.sequences import padded_sequences
from tests.td3engine.oracles import make_split

N_ITEMS = 9


@st.composite
def rows_of_a_log(draw: st.DrawFn) -> tuple[list[list[int]], list[tuple[int, int, int]]]:
    """Histories, and rows of them: (user, first event, end)."""
    items = st.lists(st.integers(0, N_ITEMS - 1), min_size=1, max_size=12)
    histories = draw(st.lists(items, min_size=1, max_size=6))
    rows = []
    for user in draw(st.lists(st.integers(0, len(histories) - 1), max_size=8)):
        first = draw(st.integers(0, len(histories[user]) - 1))
        rows.append((user, first, draw(st.integers(first + 1, len(histories[user])))))
    return histories, rows


@given(drawn=rows_of_a_log())
@settings(max_examples=80, deadline=None)
def test_padded_rows_are_those_events(
    drawn: tuple[list[list[int]], list[tuple[int, int, int]]],
) -> None:
    histories, rows = drawn
    split = make_split(histories, N_ITEMS)
    start = np.array([split.offsets[user] + first for user, first, _ in rows], np.int64)
    end = np.array([split.offsets[user] + stop for user, _, stop in rows], np.int64)
    items, lengths = padded_sequences(split, start, end)
    width = max((stop - first for _, first, stop in rows), default=0)  # the longest row's
    assert items.shape == (len(rows), width)
    assert items.dtype == lengths.dtype == torch.int64
    assert lengths.tolist() == [stop - first for _, first, stop in rows]
    for row, (user, first, stop) in zip(items.tolist(), rows, strict=True):
        assert row == [*histories[user][first:stop], *[0] * (width - (stop - first))]
