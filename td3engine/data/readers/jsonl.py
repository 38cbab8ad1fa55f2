"""Reading JSON lines: one object a line, without trusting a byte of it.

Python's own json module parses each line. pyarrow's JSON reader is not used, for the reasons that
`rows.py` has against its CSV reader: it reads ahead in threads that do not survive the end of
memory, and it does not report the line of a fault. Numbers stay the text that the file has, so an
integer of any length costs no arithmetic, and ids are exactly what is written.
"""

import json
import re
from collections.abc import Generator, Iterator, Sequence
from json import JSONDecodeError
from typing import Any, NoReturn

import pyarrow as pa

from td3engine.data.readers.batches import Batch
from td3engine.data.readers.blocks import LINE_BYTES, CheckedBlocks
from td3engine.data.readers.columns import ColumnRoles, find_columns
from td3engine.data.readers.format import FileSource, Format
from td3engine.data.types import LogError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Objects and lists within each other. Far below the depth at which the parser gives up.
MAX_DEPTH = 100
SAMPLED_LINES = 1000
# A string, whole or never closed (one attempt for each, so that the search stays linear), or a
# bracket outside of strings.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]')
_NEEDED = ("text or a whole number", "text or a whole number", "text or a number")


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of an object, doubled keys included."""


class _Whole(str):
    """An integer, as the file writes it."""


class _Fraction(str):
    """A number with a fraction or an exponent, as the file writes it."""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value; a value that is absent is null")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_Pairs,
    parse_int=_Whole,
    parse_float=_Fraction,
    parse_constant=_refuse_constant,
)
# Types that the values of the user, item and time column may have.
_USABLE = (frozenset({str, _Whole}), frozenset({str, _Whole}), frozenset({str, _Whole, _Fraction}))


def jsonl_batches(source: FileSource) -> Generator[Batch, None, None]:
    """The rows of JSON lines. The keys of the first object decide which are user, item and time.

    Ids are text or whole numbers; times are numbers, or text as in CSV files. Other keys are
    ignored, nested values too. Blank lines are skipped.

    Raises:
        LogError: any of its codes but `ragged_row` and `too_little_data`, with the line where there
            is one. `bad_format`: a line that is no JSON object, or nested too deeply.
    """
    with CheckedBlocks(source.path, source.limits) as blocks:
        yield from _Lines(source).batches(blocks)
        source.seen.unpacked = blocks.unpacked


class _Lines:
    """Rows of a file, line by line."""

    def __init__(self, source: FileSource) -> None:
        self._source, self._limits = source, source.limits
        self._line = 0
        # Of user, item and time (or day and time of day): the keys.
        self._keys: list[str] | None = None
        self._roles: ColumnRoles | None = None

    def batches(self, blocks: Iterator[bytes]) -> Iterator[Batch]:
        """The rows of each block.

        Raises:
            LogError: see `jsonl_batches`.
        """
        for block in blocks:
            text = block if self._line else block.removeprefix(BYTE_ORDER_MARK)
            lines = text.removesuffix(b"\n").split(b"\n")
            before, numbers, values = self._line, list[int](), list[list[str]]()
            for self._line, line in enumerate(lines, before + 1):
                if line and not line.isspace():
                    fields = self._fields(line)
                    keys = self._keys or self._find_keys(list(fields), lines)
                    values = values or [[] for _ in keys]
                    self._add(fields, keys, values)
                    numbers.append(self._line)
            last = self._line
            if numbers:
                arrays = (self._array(column, nth, numbers) for nth, column in enumerate(values))
                yield Batch(tuple(arrays), [numbers], self._names)
            self._line = last

    @property
    def _names(self) -> tuple[str, str, str]:
        return self._roles.names if self._roles else ("", "", "")

    def _add(self, fields: dict[str, Any], keys: list[str], values: list[list[str]]) -> None:
        """Append the values of one line."""
        for nth, (key, column) in enumerate(zip(keys, values, strict=True)):
            value: Any = fields.get(key)
            role = min(nth, 2)
            if type(value) not in _USABLE[role]:
                name = self._names[role]
                problem = f"column {name!r} {_described(value, key in fields)}"
                problem += "" if value is None else f"; it must be {_NEEDED[role]}"
                self._refuse("bad_value", f", {problem}", column=name)
            column.append(value)

    def _fields(self, line: bytes) -> dict[str, Any]:
        """The keys and values of one line, each key once."""
        if len(line) > LINE_BYTES:
            self._refuse("field_too_long", f" is longer than {LINE_BYTES:,} bytes")
        text = line.decode()
        if _depth_exceeds(text, MAX_DEPTH):
            self._refuse("bad_format", f" is nested more than {MAX_DEPTH} levels deep")
        try:
            pairs = _DECODER.decode(text)
        except JSONDecodeError as error:
            problem = f" is not a JSON object: {error.msg} at character {error.colno}"
            self._refuse("bad_format", problem, cause=error)
        except ValueError as error:
            self._refuse("bad_format", f" is not a JSON object: {error}", cause=error)
        if type(pairs) is not _Pairs:
            self._refuse("bad_format", " is not a JSON object; every line must be one")
        if len(pairs) > self._limits.max_columns:
            count = f"{len(pairs):,} keys; at most {self._limits.max_columns:,} are allowed"
            self._refuse("too_many_columns", f" has {count}")
        fields = dict(pairs)
        if len(fields) < len(pairs):
            self._refuse_doubled([key for key, _ in pairs], fields)
        return fields

    def _refuse_doubled(self, keys: list[str], fields: dict[str, Any]) -> None:
        """Refuses a needed key that a line has twice."""
        needed = self._keys or self._find_keys(list(fields), [])
        for key in needed:
            if keys.count(key) > 1:
                double = _shown(key)[:60]
                self._refuse("duplicate_column", f" has the key {double!r} twice", column=double)

    def _find_keys(self, keys: list[str], lines: list[bytes]) -> list[str]:
        def sample(positions: Sequence[int]) -> list[list[str]]:
            rows = [self._fields(line) for line in lines[:SAMPLED_LINES] if line.strip()]
            wanted = [keys[position] for position in positions]
            whole = [row for row in rows if all(isinstance(row.get(key), str) for key in wanted)]
            return [[row[key] for row in whole] for key in wanted]

        self._roles = find_columns(
            [_shown(key) for key in keys],
            self._source.columns,
            self._limits,
            line=self._line,
            sample=sample,
        )
        self._source.seen.roles = self._roles
        self._keys = [keys[position] for position in self._roles.positions]
        return self._keys

    def _array(self, column: list[str], nth: int, lines: list[int]) -> Any:
        try:
            return pa.array(column, pa.string())
        except UnicodeEncodeError as error:
            row = next(row for row, value in enumerate(column) if _is_broken(value))
            self._line, name = lines[row], self._names[min(nth, 2)]
            problem = f", column {name!r} holds half of a surrogate pair, which is no character"
            self._refuse("bad_value", problem, column=name, cause=error)

    def _refuse(
        self,
        code: Any,
        problem: str,
        *,
        column: str | None = None,
        cause: Exception | None = None,
    ) -> NoReturn:
        message = f"line {self._line}{problem}"
        raise LogError(code, message, line=self._line, column=column) from cause


def _described(value: object, present: bool) -> str:
    """A value that cannot be used, for a message."""
    if value is None:
        return "is empty" if present else "is missing"
    names: dict[type, str] = {_Pairs: "an object", list: "a list"}
    kind = names.get(type(value))
    return f"is {kind}" if kind else f"is {str(value)[:60].lower()}"


def _depth_exceeds(text: str, most: int) -> bool:
    if text.count("[") + text.count("{") <= most:
        return False
    depth = 0
    for token in _TOKEN.finditer(text):
        first = text[token.start()]
        depth += (first in "[{") - (first in "]}")
        if depth > most:
            return True
    return False


def _shown(key: str) -> str:
    """A key as text that can be sent and stored: escaped where it holds what is no character."""
    return key if key.isprintable() else ascii(key)[1:-1]


def _is_broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _looks_like_jsonl(start: bytes) -> bool:
    return start.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"{")


FORMATS = (
    # Many public logs call JSON lines `.json`.
    Format("jsonl", (".jsonl", ".ndjson", ".json"), jsonl_batches, looks_like=_looks_like_jsonl),
)
