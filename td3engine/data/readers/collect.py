"""From batches of rows to a sorted log: in memory, or of a long log in temporary files.

Rows are taken in runs. A run's ids are numbered by themselves; they and its rows (two codes and a
time, 16 bytes) go to temporary files once the log has more rows than `Limits.max_rows_in_memory`.
At the end the ids of all runs are numbered together, in memory (a few runs at once: one by one,
each would cost as much as all ids before it), and the rows are dealt into buckets of neighbouring
users, each small enough to be sorted in memory. A short log is one bucket, and goes the same way.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from td3engine.data.readers.values import TimeReader, read_ids, whole_if_possible
from td3engine.data.types import Codes, Interactions, Limits, LogError, Times

RUN_ROWS = 2**21
RUNS_AT_ONCE = 12
BUCKET_ROWS = 2**22
UNSEEN = np.iinfo(np.int64).max

Positions: TypeAlias = NDArray[np.int64]
# Codes of users and items, and times, of the same rows.
Columns: TypeAlias = tuple[Codes, Codes, Times]
Array = TypeVar("Array", bound=np.ndarray[Any, Any])


class Ids:
    """Texts of a column, each once in every run: put together at the end."""

    def __init__(self) -> None:
        self.runs: list[Any] = []

    def codes(self, parts: list[Any]) -> Codes:
        """int32 positions, among the texts of the run that they make, of dictionary arrays."""
        merged = pa.chunked_array(parts).unify_dictionaries()
        self.runs.append(merged.chunk(0).dictionary)
        codes = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in merged.chunks]
        return np.concatenate(codes).astype(np.int32, copy=False)

    def put_together(self, known: Any, some: slice) -> tuple[Any, list[Codes]]:
        """`known` and the texts of some runs, each once, and for each run where its own are."""
        texts = [known, *self.runs[some]]
        every = np.arange(max(map(len, texts)), dtype=np.int32)
        chunks = [pa.DictionaryArray.from_arrays(every[: len(one)], one) for one in texts]
        # `known` may be empty, but is there: pyarrow lets a single chunk be, and a file's own
        # dictionary may hold a text twice.
        merged = pa.chunked_array(chunks).unify_dictionaries()
        return merged.chunk(0).dictionary, [part.indices.to_numpy() for part in merged.chunks[1:]]


class Collector:
    """Takes batches of rows and gives the whole log.

    Args:
        limits: how many rows may come, and how many of them may be in memory.
        scratch: folder for temporary files; None is the system's.
        time_format: how times are written, if they are text.

    Raises:
        LogError: `bad_value`: there is no such format.
    """

    def __init__(
        self, limits: Limits, scratch: Path | None = None, time_format: str | None = None
    ) -> None:
        self.limits, self.scratch = limits, scratch
        self.rows = 0
        self._users, self._items = Ids(), Ids()
        self.times = TimeReader(limits, time_format)
        self._runs: list[Columns] = []
        self._pending: list[tuple[Any, Any, Times]] = []
        self._pending_rows = 0

    def add(self, users: Any, items: Any, times: Any) -> None:
        """Takes one batch: three pyarrow arrays of one length.

        Raises:
            BadRowError: an id or time that is empty, too long or no time at all.
            LogError: `too_many_rows`.
        """
        if self.rows + len(users) > self.limits.max_rows:
            raise LogError(
                "too_many_rows", f"there are more than {self.limits.max_rows:,} interactions"
            )
        self._pending.append(
            (
                read_ids(users, self.rows, 0, self.limits),
                read_ids(items, self.rows, 1, self.limits),
                self.times.read(times, self.rows),
            )
        )
        self.rows += len(users)
        self._pending_rows += len(users)
        if self._pending_rows >= RUN_ROWS:
            self._end_run()

    def finish(self) -> Interactions:
        """The whole log, sorted and numbered. Its arrays are read from temporary files where they
        are too long for memory; those have no name and go with the arrays.

        Raises:
            LogError: `empty_file` when no row was added.
        """
        self._end_run()
        if not self.rows:
            raise LogError("empty_file", "there are no interactions")
        runs, self._runs = self._runs, []
        user_texts, users_by_run = self._numbered(self._users, [users for users, _, _ in runs])
        item_texts, items_by_run = self._numbered(self._items, [items for _, items, _ in runs])
        times_by_run = [times for _, _, times in runs]
        runs = list(zip(users_by_run, items_by_run, times_by_run, strict=True))
        # Users are numbered by the bytes of their ids, so that the order of rows does not matter.
        user_order = pc.sort_indices(user_texts).to_numpy().astype(np.int64)
        user_numbers = np.empty(len(user_order), np.int32)
        user_numbers[user_order] = np.arange(len(user_order), dtype=np.int32)
        log, buckets = self._deal(runs, user_numbers, len(user_order))
        for rows in buckets:
            _sort(log, rows)
        # Items are numbered as they appear in the *sorted* log, so that normalising a normalised
        # log changes nothing.
        users, items, times = log
        item_numbers, item_order = by_first_appearance(
            (items[rows] for rows in buckets), len(item_texts)
        )
        for rows in buckets:
            items[rows] = item_numbers[items[rows]]
        user_ids = user_texts.take(pa.array(user_order)).to_pylist()
        item_ids = item_texts.take(pa.array(item_order)).to_pylist()
        return Interactions(users, items, times, user_ids, item_ids)

    @property
    def _in_memory(self) -> bool:
        return self.rows <= self.limits.max_rows_in_memory

    def _end_run(self) -> None:
        """Number the ids of what is pending and put it away."""
        if not self._pending_rows:
            return
        users, items, times = zip(*self._pending, strict=True)
        self._pending, self._pending_rows = [], 0
        self._runs.append(
            (
                self._kept(self._users.codes(list(users))),
                self._kept(self._items.codes(list(items))),
                self._kept(whole_if_possible(list(times))),
            )
        )
        if not self._in_memory:
            for ids in (self._users, self._items):
                ids.runs[-1] = self._filed_texts(ids.runs[-1])

    def _numbered(self, ids: Ids, runs: list[Codes]) -> tuple[Any, list[Codes]]:
        """All texts of a column, and the positions among them of each run's rows."""
        texts, numbered = pa.array([], pa.string()), []
        for first in range(0, len(runs), RUNS_AT_ONCE):
            some = slice(first, first + RUNS_AT_ONCE)
            texts, numbers = ids.put_together(texts, some)
            pairs = zip(numbers, runs[some], strict=True)
            numbered += [self._kept(number[codes]) for number, codes in pairs]
        ids.runs.clear()
        return texts, numbered

    def _deal(
        self, runs: list[Columns], user_numbers: Codes, users: int
    ) -> tuple[Columns, list[slice]]:
        """All rows by bucket, in the order of the file within each, and where each bucket lies."""
        counts = np.zeros(users, np.int64)
        for codes, _, _ in runs:
            counts += np.bincount(user_numbers[codes], minlength=users)
        at_most = self.rows if self._in_memory else BUCKET_ROWS
        # A user whose rows end in the nth stretch of `at_most` rows is in the nth bucket.
        bucket_of = (np.cumsum(counts) - 1) // at_most
        sizes = np.bincount(bucket_of, weights=counts).astype(np.int64)
        ends = np.cumsum(sizes)
        kinds = {times.dtype for _, _, times in runs}
        log = (
            self._empty(np.dtype(np.int32)),
            self._empty(np.dtype(np.int32)),
            self._empty(kinds.pop() if len(kinds) == 1 else np.dtype(np.float64)),
        )
        filled = ends - sizes
        for codes, items, times in runs:
            numbers = user_numbers[codes]
            buckets = bucket_of[numbers]
            order = np.argsort(buckets, kind="stable") if len(sizes) > 1 else slice(None)
            dealt = numbers[order], items[order], times[order]
            stops = np.cumsum(np.bincount(buckets, minlength=len(sizes)))
            for bucket, (start, stop) in enumerate(zip([0, *stops[:-1]], stops, strict=True)):
                target = slice(filled[bucket], filled[bucket] + stop - start)
                for column, values in zip(log, dealt, strict=True):
                    column[target] = values[start:stop]
                filled[bucket] = target.stop
        return log, [slice(end - size, end) for end, size in zip(ends, sizes, strict=True) if size]

    def _empty(self, kind: np.dtype[Any]) -> Any:
        """Room for a column of the whole log."""
        if self._in_memory:
            return np.empty(self.rows, kind)
        with tempfile.TemporaryFile(dir=self.scratch) as file:
            return np.memmap(file, kind, "w+", shape=self.rows)

    def _kept(self, values: Array) -> Array:
        """The same values, in a file if the log does not go into memory."""
        if self._in_memory:
            return values
        with tempfile.TemporaryFile(dir=self.scratch) as file:
            file.write(values.data)
            file.flush()
            return np.memmap(file, values.dtype, "r", shape=values.shape)  # type: ignore[return-value]

    def _filed_texts(self, texts: Any) -> Any:
        """The same array of text, in a file."""
        batch = pa.record_batch([texts], ["text"])
        with tempfile.TemporaryFile(dir=self.scratch) as file:
            with pa.ipc.new_stream(file, batch.schema) as writer:
                writer.write_batch(batch)
            file.flush()
            mapped = pa.py_buffer(np.memmap(file, np.uint8, "r"))
        return pa.ipc.open_stream(mapped).read_next_batch().column(0)


def _sort(log: Columns, rows: slice) -> None:
    """Sort these rows by user, then time (ties stay), in place."""
    users, times = log[0][rows], log[2][rows]
    steps = np.diff(users)
    if not ((steps < 0) | ((steps == 0) & (np.diff(times) < 0))).any():
        return
    order = np.lexsort((times, users))
    for column in log:
        column[rows] = column[rows][order]


def by_first_appearance(chunks: Iterable[Codes], size: int) -> tuple[Codes, Positions]:
    """Numbers for codes below `size`, in the order in which they first appear in `chunks`.

    Returns:
        int32[size], the number of each code (0 for one that never appears); and the codes that do
        appear, by number.
    """
    first = np.full(size, UNSEEN, np.int64)
    offset = 0
    for codes in chunks:
        new = np.flatnonzero(first[codes] == UNSEEN)[::-1]
        first[codes[new]] = new + offset  # of a repeated code the last, and so its first, counts
        offset += len(codes)
    order = np.argsort(first, kind="stable")[: np.count_nonzero(first != UNSEEN)]
    numbers = np.zeros(size, np.int32)
    numbers[order] = np.arange(len(order), dtype=np.int32)
    return numbers, order
