"""From columns of text or numbers, batch by batch, to the arrays of `Interactions`."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from td3engine._log.model import Codes, Interactions, Limits, LogError, LogErrorCode, Times

_ZONE = r"\d{2}:\d{2}.*(Z|[+-]\d{2}(:?\d{2})?)$"
_WHOLE_LIMIT = 2.0**63
_TICKS_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


class BadRowError(Exception):
    """A row that cannot be used. The reader turns it into a LogError once it knows the line.

    Attributes:
        row: data row of the file, from 0.
        role: 0 user, 1 item, 2 time.
    """

    def __init__(self, code: LogErrorCode, row: int, role: int, problem: str) -> None:
        super().__init__(problem)
        self.code: LogErrorCode = code
        self.row = row
        self.role = role
        self.problem = problem


@dataclass
class Collector:
    """Takes batches of rows and keeps them small: ids as dictionary codes, times as numbers."""

    limits: Limits
    rows: int = 0
    _users: list[Any] = field(default_factory=list)
    _items: list[Any] = field(default_factory=list)
    _times: list[Times] = field(default_factory=list)
    _time_kind: Literal["number", "date"] | None = None

    def add(self, users: Any, items: Any, times: Any) -> None:
        """Takes one batch: three pyarrow arrays of one length.

        Raises:
            BadRowError: an id or time that is empty, too long or no time at all.
            LogError: `too_many_rows`.
        """
        if self.rows + len(users) > self.limits.max_rows:
            raise LogError(
                "too_many_rows", f"the file has more than {self.limits.max_rows:,} interactions"
            )
        self._users.append(self._ids(users, 0))
        self._items.append(self._ids(items, 1))
        self._times.append(self._numbers(times))
        self.rows += len(users)

    def finish(self) -> Interactions:
        """The whole log, sorted and numbered.

        Raises:
            LogError: `empty_file` when no row was added.
        """
        if not self.rows:
            raise LogError("empty_file", "the file has a header but no interactions")
        users, user_ids = _unify(self._users)
        items, item_ids = _unify(self._items)
        times = whole_if_possible(self._times)
        # Sorted by time, then stably by user; lexsort does both in that order.
        order = np.lexsort((times, users))
        users, items, times = users[order], items[order], times[order]
        # Items are numbered as they appear in the *sorted* log, so that normalising a normalised
        # log changes nothing.
        first = pa.array(items).dictionary_encode()
        item_ids = pa.array(item_ids).take(first.dictionary).to_pylist()
        return Interactions(users, first.indices.to_numpy(), times, user_ids, item_ids)

    def _ids(self, column: Any, role: int) -> Any:
        """Dictionary array of one batch of ids; every id is valid text that is not blank."""
        if pa.types.is_dictionary(column.type) and column.dictionary.null_count:
            column = column.dictionary_decode()
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        ids = _as_text(encoded.dictionary)
        indices = encoded.indices.cast(pa.int32())
        self._check(indices.is_null(), role, "bad_value", "is empty")
        blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(ids)), 0)
        self._check(_spread(blank, indices), role, "bad_value", "is empty")
        long = pc.greater(pc.binary_length(ids), self.limits.max_field_length)
        self._check(_spread(long, indices), role, "field_too_long", self._too_long())
        nul = pc.match_substring(ids, "\0")
        self._check(_spread(nul, indices), role, "bad_value", "holds a NUL character")
        return pa.DictionaryArray.from_arrays(indices, ids)

    def _numbers(self, column: Any) -> Times:
        """int64 or float64 values of one batch of times."""
        kind = column.type
        if pa.types.is_dictionary(kind):
            column, kind = column.dictionary_decode(), kind.value_type
        self._check(column.is_null(), 2, "bad_value", "is empty")
        if pa.types.is_integer(kind):
            # Unsigned 64-bit values beyond int64 (no clock gives them) become floats.
            whole = kind != pa.uint64() or (pc.max(column).as_py() or 0) < _WHOLE_LIMIT
            return _values(column.cast(pa.int64() if whole else pa.float64(), safe=False))
        if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            return self._finite(column.cast(pa.float64()))
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            moments = column if pa.types.is_timestamp(kind) else column.cast(pa.timestamp("ms"))
            return _epoch_seconds(moments)
        return self._from_text(_as_text(column))

    def _from_text(self, texts: Any) -> Times:
        long = pc.greater(pc.binary_length(texts), self.limits.max_field_length)
        self._check(long, 2, "field_too_long", self._too_long())
        texts = pc.utf8_trim_whitespace(texts)
        self._check(pc.equal(pc.binary_length(texts), 0), 2, "bad_value", "is empty")
        if self._time_kind is None and len(texts):
            self._time_kind = "number" if _is_number(texts[0].as_py()) else "date"
        if self._time_kind == "date":
            try:
                return _epoch_seconds(_parse_dates(texts))
            except pa.ArrowInvalid:
                self._blame(texts, _is_date, "is neither a number nor an ISO date")
        # pyarrow would take 0x10 for a whole number; a time is not written like that.
        hexadecimal = pc.any(pc.match_substring_regex(texts, "[xX]")).as_py()
        for kind in (pa.float64(),) if hexadecimal else (pa.int64(), pa.float64()):
            try:
                numbers = texts.cast(kind)
            except pa.ArrowInvalid:
                continue
            return self._finite(numbers)
        self._blame(texts, _is_number, "is not a number, as the times before it are")
        raise AssertionError("unreachable: a batch that does not convert has a value to blame")

    def _blame(self, texts: Any, is_good: Any, problem: str) -> None:
        """Raises for the first text that does not convert by itself."""
        for row, text in enumerate(texts.to_pylist()):
            if not is_good(text):
                raise BadRowError("bad_value", self.rows + row, 2, f"{problem}: {text[:60]!r}")

    def _finite(self, numbers: Any) -> Times:
        values = _values(numbers)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            row = int(bad[0])
            raise BadRowError("bad_value", self.rows + row, 2, f"is not finite: {values[row]}")
        return values

    def _check(self, faulty: Any, role: int, code: LogErrorCode, problem: str) -> None:
        """Raises for the first row where `faulty` (boolean array) holds."""
        if pc.any(faulty).as_py():
            row = pc.index(faulty, pa.scalar(True)).as_py()
            raise BadRowError(code, self.rows + row, role, problem)

    def _too_long(self) -> str:
        return f"is longer than {self.limits.max_field_length:,} bytes"


def whole_if_possible(parts: list[Times]) -> Times:
    """The parts in a row: int64 if every value is a whole number that fits, else float64."""
    if all(part.dtype == np.int64 for part in parts):
        return np.concatenate([part.astype(np.int64, copy=False) for part in parts])
    values: NDArray[np.float64] = np.concatenate([part.astype(np.float64) for part in parts])
    if np.all((np.floor(values) == values) & (np.abs(values) < _WHOLE_LIMIT)):
        # Part by part: a whole number beyond 2^53 must not lose digits to another part's floats.
        return np.concatenate([part.astype(np.int64) for part in parts])
    return values


def _unify(parts: list[Any]) -> tuple[Codes, list[str]]:
    """Codes by order of first appearance over all parts, and what they stand for."""
    chunks = pa.chunked_array(parts).unify_dictionaries()
    ids = chunks.chunk(0).dictionary
    codes = np.concatenate([_numpy(chunk.indices) for chunk in chunks.chunks])
    # A dictionary that came out of a file may hold ids out of order, twice, or that no row has.
    used = pa.array(codes).dictionary_encode()
    texts = ids.take(used.dictionary).dictionary_encode()
    codes = _numpy(texts.indices)[_numpy(used.indices)]
    return codes.astype(np.int32, copy=False), texts.dictionary.to_pylist()


def is_id_type(kind: Any) -> bool:
    """Whether a column of this pyarrow type can hold ids: text, bytes or whole numbers."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_integer(kind) or _is_text_type(kind)


def is_time_type(kind: Any) -> bool:
    """Whether a column of this pyarrow type can hold times: numbers, moments or text."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    types = pa.types
    tests = (types.is_integer, types.is_floating, types.is_decimal, types.is_timestamp)
    return types.is_date(kind) or _is_text_type(kind) or any(test(kind) for test in tests)


def _is_text_type(kind: Any) -> bool:
    types = pa.types
    tests = (types.is_string, types.is_large_string, types.is_string_view)
    return types.is_binary(kind) or types.is_large_binary(kind) or any(test(kind) for test in tests)


def _as_text(column: Any) -> Any:
    """A column of an id type as text. Raises ArrowInvalid where bytes are not UTF-8."""
    if pa.types.is_integer(column.type):
        return column.cast(pa.string())
    # By way of bytes, because text out of a Parquet file has not been checked yet.
    return column.cast(pa.binary()).cast(pa.string())


def _spread(per_id: Any, indices: Any) -> Any:
    """A property of ids as a property of rows; cheap when no id has it."""
    return per_id.take(indices) if pc.any(per_id).as_py() else per_id.slice(0, 0)


def _parse_dates(texts: Any) -> Any:
    """ISO dates and times as moments in microseconds; without a zone they are taken as UTC."""
    zoned = pc.match_substring_regex(texts, _ZONE)
    if not pc.any(zoned).as_py():
        return texts.cast(pa.timestamp("us"))
    naive = pc.if_else(zoned, None, texts).cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
    return pc.coalesce(pc.if_else(zoned, texts, None).cast(pa.timestamp("us", "UTC")), naive)


def _epoch_seconds(moments: Any) -> Times:
    ticks: NDArray[np.int64] = _numpy(moments.cast(pa.int64()))
    per_second = _TICKS_PER_SECOND[moments.type.unit]
    if np.all(ticks % per_second == 0):
        return ticks // np.int64(per_second)
    return np.true_divide(ticks, per_second, dtype=np.float64)


def _is_number(text: str) -> bool:
    return _converts(text, pa.float64())


def _is_date(text: str) -> bool:
    try:
        _parse_dates(pa.array([text]))
    except pa.ArrowInvalid:
        return False
    return True


def _converts(text: str, kind: Any) -> bool:
    try:
        pa.scalar(text).cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _values(column: Any) -> Times:
    values: Times = _numpy(column)
    return values


def _numpy(column: Any) -> Any:
    return column.to_numpy(zero_copy_only=False)
