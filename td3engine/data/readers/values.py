"""What the values of a column mean: ids and times out of text or numbers of any type."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from td3engine.data.readers.times import TimeFormat, formats_of
from td3engine.data.types import Limits, LogError, LogErrorCode, Times

TimeKind = Literal["number", "date", "moment"]
_ZONE = r"\d{2}:\d{2}.*(Z|[+-]\d{2}(:?\d{2})?)$"
_FINER = r"(:\d{2}\.\d{6})\d+"  # than a microsecond
_NAMED_ZONE = r"\s*(UTC|GMT)$"
_WHOLE_LIMIT = 2.0**63
_FOREVER = 2**63 - 1  # DuckDB's and PostgreSQL's infinity, and its negative
_DAYS_FOREVER = 2**31 - 1
_CULPRITS = 1000  # values that a format has to read before it is named
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


def read_ids(column: Any, first_row: int, role: int, limits: Limits) -> Any:
    """Dictionary array (int32 indices) of one batch of ids; every id is valid text, not blank.

    Args:
        column: pyarrow array of an id type.
        first_row: data row of the file that the batch starts with.
        role: 0 user, 1 item.
        limits: of the file.

    Raises:
        BadRowError: an id that is empty or too long, or holds a NUL character.
    """
    if pa.types.is_dictionary(column.type) and column.dictionary.null_count:
        column = column.dictionary_decode()
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    elif is_uuid(column.type):
        column = column.storage
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    indices = encoded.indices.cast(pa.int32())
    try:
        ids = _as_text(encoded.dictionary)
    except pa.ArrowInvalid as error:
        broken = pa.array([_is_broken(each) for each in encoded.dictionary])
        row = first_row + pc.index(broken.take(indices), pa.scalar(True)).as_py()
        raise BadRowError("bad_encoding", row, role, "is not UTF-8 text") from error

    def check(faulty: Any, code: LogErrorCode, problem: str) -> None:
        _check(faulty, first_row, role, code, problem)

    check(indices.is_null(), "bad_value", "is empty")
    lengths = pc.binary_length(ids)
    blank = pc.or_(pc.equal(lengths, 0), pc.utf8_is_space(ids))
    check(_spread(blank, indices), "bad_value", "is empty")
    long = pc.greater(lengths, limits.max_field_length)
    check(_spread(long, indices), "field_too_long", _too_long(limits))
    if _may_hold(ids, "\0"):
        nul = pc.match_substring(ids, "\0")
        check(_spread(nul, indices), "bad_value", "holds a NUL character")
    return pa.DictionaryArray.from_arrays(indices, ids)


@dataclass
class TimeReader:
    """Times of a log, batch by batch: all of its text is numbers, or all of it is dates.

    Args:
        limits: of the log.
        written: how times are written, if they are text; None: numbers or ISO dates.

    Attributes:
        kind: what the times are; None before the first.

    Raises:
        LogError: `bad_value`: there is no such format.
    """

    limits: Limits
    written: str | None = None
    kind: TimeKind | None = None
    _format: TimeFormat | None = None

    def __post_init__(self) -> None:
        if self.written is not None:
            try:
                self._format = TimeFormat(self.written)
            except ValueError as error:
                raise LogError("bad_value", f"the format of times: {error}") from error

    def read(self, column: Any, first_row: int) -> Times:
        """int64 or float64 values of one batch, which starts with this data row of the log.

        Raises:
            BadRowError: a time that is empty, infinite, too long or no time at all, or of another
                kind than those before it.
        """
        kind = column.type
        if pa.types.is_dictionary(kind):
            column, kind = column.dictionary_decode(), kind.value_type
        _check(column.is_null(), first_row, 2, "bad_value", "is empty")
        if self._format is None and (is_number_type(kind) or is_moment_type(kind)):
            self._become("number" if is_number_type(kind) else "moment", first_row)
        if self._format is not None or not (is_number_type(kind) or is_moment_type(kind)):
            return self._from_text(self._texts(column, first_row), first_row)
        if pa.types.is_integer(kind):
            # Unsigned 64-bit values beyond int64 (no clock gives them) become floats.
            whole = kind != pa.uint64() or (pc.max(column).as_py() or 0) < _WHOLE_LIMIT
            return _values(column.cast(pa.int64() if whole else pa.float64(), safe=False))
        if is_number_type(kind):
            return _finite(column.cast(pa.float64()), first_row)
        return _moments(column, first_row)

    def _texts(self, column: Any, first_row: int) -> Any:
        try:
            return _as_text(column)
        except pa.ArrowInvalid as error:
            row = next(row for row, value in enumerate(column) if _is_broken(value))
            problem = "is not UTF-8 text"
            raise BadRowError("bad_encoding", first_row + row, 2, problem) from error

    def _become(self, kind: TimeKind, first_row: int) -> None:
        """Notes the kind of times; parts of a log must not differ."""
        dates = {"date", "moment"}
        if self.kind is not None and (self.kind in dates) != (kind in dates):
            problem = f"is a {kind}, and the times before it are {self.kind}s"
            raise BadRowError("bad_value", first_row, 2, problem)
        self.kind = self.kind or kind

    def _from_text(self, texts: Any, first_row: int) -> Times:
        long = pc.greater(pc.binary_length(texts), self.limits.max_field_length)
        _check(long, first_row, 2, "field_too_long", _too_long(self.limits))
        if self._format is not None:
            return self._by_format(self._format, texts, first_row)
        # pyarrow would take 0x10 for a whole number; a time is not written like that.
        hexadecimal = _may_hold(texts, "x") or _may_hold(texts, "X")
        numbers_allowed = self.kind in (None, "number") and not hexadecimal
        whole = _cast(texts, pa.int64()) if numbers_allowed else None
        if whole is not None:
            self.kind = "number" if len(texts) else self.kind
            return _values(whole)
        texts = pc.utf8_trim_whitespace(texts)
        _check(pc.equal(pc.binary_length(texts), 0), first_row, 2, "bad_value", "is empty")
        if self.kind is None:
            self.kind = "number" if _is_number(texts[0].as_py()) else "date"
        if self.kind != "number":
            try:
                return _epoch_seconds(_parse_dates(texts))
            except pa.ArrowInvalid as error:
                problem = "is neither a number nor an ISO date"
                raise _culprit(texts, _is_date, first_row, problem) from error
        for kind in (pa.float64(),) if hexadecimal else (pa.int64(), pa.float64()):
            numbers = _cast(texts, kind)
            if numbers is not None:
                return _finite(numbers, first_row)
        problem = "is not a number, as the times before it are"
        raise _culprit(texts, _is_number, first_row, problem)

    def _by_format(self, written: TimeFormat, texts: Any, first_row: int) -> Times:
        texts = pc.utf8_trim_whitespace(texts)
        _check(pc.equal(pc.binary_length(texts), 0), first_row, 2, "bad_value", "is empty")
        ticks, good = written.read(texts)
        bad = np.flatnonzero(~good)
        if len(bad):
            row = int(bad[0])
            problem = f"is not written as {written.written!r}: {texts[row].as_py()[:60]!r}"
            raise BadRowError("bad_value", first_row + row, 2, problem)
        self.kind = "date"
        return _seconds_of_ticks(ticks, 10**6)


def _moments(column: Any, first_row: int) -> Times:
    """Seconds since 1970 of a column of moments or days."""
    if pa.types.is_date32(column.type):
        forever = pc.greater_equal(pc.abs(column.cast(pa.int32())), _DAYS_FOREVER)
        _check(forever, first_row, 2, "bad_value", "is infinite")
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    ticks = column.cast(pa.int64())
    forever = pc.or_(pc.equal(ticks, _FOREVER), pc.less_equal(ticks, -_FOREVER))
    _check(forever, first_row, 2, "bad_value", "is infinite")
    return _epoch_seconds(column)


def _culprit(
    texts: Any, is_good: Callable[[str], bool], first_row: int, problem: str
) -> BadRowError:
    """The error of the first text that does not convert by itself, with what would read it."""
    values = texts.to_pylist()
    for row, text in enumerate(values):
        if not is_good(text):
            some = values[row : row + _CULPRITS]
            formats = formats_of(some) or formats_of([text])
            advice = f"; --time-format {formats[0]!r} would read it" if formats else ""
            if len(formats) > 1:
                advice += f" (or {formats[1]!r})"
            shown = f"{problem}: {text[:60]!r}{advice}"
            return BadRowError("bad_value", first_row + row, 2, shown)
    raise AssertionError("unreachable: a batch that does not convert has a value to blame")


def _finite(numbers: Any, first_row: int) -> Times:
    values = _values(numbers)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        row = int(bad[0])
        raise BadRowError("bad_value", first_row + row, 2, f"is not finite: {values[row]}")
    return values


def _check(faulty: Any, first_row: int, role: int, code: LogErrorCode, problem: str) -> None:
    """Raises for the first row where `faulty` (boolean array) holds."""
    if pc.any(faulty).as_py():
        row = pc.index(faulty, pa.scalar(True)).as_py()
        raise BadRowError(code, first_row + row, role, problem)


def _too_long(limits: Limits) -> str:
    return f"is longer than {limits.max_field_length:,} bytes"


def _may_hold(texts: Any, character: str) -> bool:
    """Whether this ASCII character is in the memory of an array of text: no means no."""
    memory = texts.buffers()[2]
    return memory is not None and bool((np.frombuffer(memory, np.uint8) == ord(character)).any())


def _cast(texts: Any, kind: Any) -> Any | None:
    """The texts as numbers of this type; None where one is not."""
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        return None


def whole_if_possible(parts: list[Times]) -> Times:
    """The parts in a row: int64 if every value is a whole number that fits, else float64."""
    if all(part.dtype == np.int64 for part in parts):
        return np.concatenate([part.astype(np.int64, copy=False) for part in parts])
    values: NDArray[np.float64] = np.concatenate([part.astype(np.float64) for part in parts])
    if np.all((np.floor(values) == values) & (np.abs(values) < _WHOLE_LIMIT)):
        # Part by part: a whole number beyond 2^53 must not lose digits to another part's floats.
        return np.concatenate([part.astype(np.int64) for part in parts])
    return values


def is_id_type(kind: Any) -> bool:
    """Whether a column of this pyarrow type can hold ids: text, bytes, UUIDs or whole numbers."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    whole = pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0)
    return whole or _is_text_type(kind) or is_uuid(kind) or pa.types.is_null(kind)


def is_uuid(kind: Any) -> bool:
    """Whether a pyarrow type is that of UUIDs."""
    return getattr(kind, "extension_name", None) == "arrow.uuid"


def is_time_type(kind: Any) -> bool:
    """Whether a column of this pyarrow type can hold times: numbers, moments or text."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    numbers_or_moments = is_number_type(kind) or is_moment_type(kind)
    return numbers_or_moments or _is_text_type(kind) or pa.types.is_null(kind)


def is_number_type(kind: Any) -> bool:
    """Whether a pyarrow type is one of numbers."""
    types = pa.types
    return any(test(kind) for test in (types.is_integer, types.is_floating, types.is_decimal))


def is_moment_type(kind: Any) -> bool:
    """Whether a pyarrow type is one of moments or days."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _is_text_type(kind: Any) -> bool:
    types = pa.types
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    binaries = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(test(kind) for test in (*texts, *binaries))


def _as_text(column: Any) -> Any:
    """A column of an id type as text; UUIDs come as their bytes.

    Raises ArrowInvalid where bytes are not UTF-8.
    """
    if pa.types.is_fixed_size_binary(column.type):
        return pa.array([str(UUID(bytes=each)) for each in column.to_pylist()], pa.string())
    if not _is_text_type(column.type):
        return column.cast(pa.string())
    # By way of bytes, because text out of a Parquet file has not been checked yet.
    return column.cast(pa.binary()).cast(pa.string())


def _is_broken(value: Any) -> bool:
    """Whether an arrow scalar of text or bytes is no UTF-8."""
    try:
        bytes(value.as_buffer() or b"").decode()
    except UnicodeDecodeError:
        return True
    return False


def texts_of(column: Any) -> list[str]:
    """Values as text, whatever their type; empty where there is none. For a look, not for sums."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        texts = column.cast(pa.string()).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError):
        texts = [None if each is None else str(each) for each in column.to_pylist()]
    return ["" if text is None else text for text in texts]


def _spread(per_id: Any, indices: Any) -> Any:
    """A property of ids as a property of rows; cheap when no id has it."""
    return per_id.take(indices) if pc.any(per_id).as_py() else per_id.slice(0, 0)


def _parse_dates(texts: Any) -> Any:
    """ISO dates and times as moments in microseconds, what is finer cut off; without a zone they
    are taken as UTC."""
    if pc.any(pc.match_substring_regex(texts, _NAMED_ZONE)).as_py():
        texts = pc.replace_substring_regex(texts, _NAMED_ZONE, "Z")
    if pc.any(pc.match_substring_regex(texts, _FINER)).as_py():
        texts = pc.replace_substring_regex(texts, _FINER, r"\1")
    zoned = pc.match_substring_regex(texts, _ZONE)
    if not pc.any(zoned).as_py():
        return texts.cast(pa.timestamp("us"))
    naive = pc.if_else(zoned, None, texts).cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
    return pc.coalesce(pc.if_else(zoned, texts, None).cast(pa.timestamp("us", "UTC")), naive)


def _epoch_seconds(moments: Any) -> Times:
    ticks: NDArray[np.int64] = _numpy(moments.cast(pa.int64()))
    return _seconds_of_ticks(ticks, _TICKS_PER_SECOND[moments.type.unit])


def _seconds_of_ticks(ticks: NDArray[np.int64], per_second: int) -> Times:
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
