"""What reading a log gives, what it may cost, and how it fails."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

LogErrorCode = Literal[
    "missing_column",
    "duplicate_column",
    "empty_file",
    "bad_value",
    "bad_encoding",
    "bad_format",
    "ragged_row",
    "too_large",
    "too_many_rows",
    "too_many_columns",
    "field_too_long",
    "too_little_data",
]
RATIO_FREE_BYTES = 2**20
Codes = NDArray[np.int32]
Times = NDArray[np.int64] | NDArray[np.float64]
PositiveInt = Annotated[int, Field(gt=0)]


class LogError(ValueError):
    """A log that cannot be read or used; the message says what its owner can change.

    Attributes:
        code: stable, for programs.
        message: for people; already names the line and the column where they are known.
        line: line of a text file, from 1 (the header, if it has one); row, from 1, of a Parquet
            file or a table in memory.
        column: name of the column, as the file writes it.
    """

    def __init__(
        self,
        code: LogErrorCode,
        message: str,
        *,
        line: int | None = None,
        column: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.line = line
        self.column = column


class Limits(BaseModel):
    """What a file may cost. Enforced while it is read, so memory stays bounded by what is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_bytes: PositiveInt = Field(default=2**30, description="Size of the file as it came.")
    max_unpacked_bytes: PositiveInt = Field(
        default=4 * 2**30, description="Size after decompression."
    )
    max_ratio: PositiveInt = Field(
        default=200,
        description="Unpacked bytes for each packed byte (the first MiB is always allowed).",
    )
    max_rows: PositiveInt = Field(default=50_000_000, description="Interactions.")
    max_rows_in_memory: PositiveInt = Field(
        default=2**23,
        description="Rows of a longer log lie in temporary files while it is read.",
    )
    max_columns: PositiveInt = Field(default=1000, description="Columns, used or not.")
    max_field_length: PositiveInt = Field(
        default=1024, description="Bytes of one user id, item id or time."
    )
    max_files: PositiveInt = Field(default=10_000, description="Files of one log.")

    def check_unpacked(self, unpacked: int, packed: int) -> None:
        """Refuses what unpacks to too much, all in all or for its size.

        Raises:
            LogError: `too_large`.
        """
        if unpacked > self.max_unpacked_bytes:
            limit = f"{self.max_unpacked_bytes:,} bytes"
            raise LogError("too_large", f"the file unpacks to more than {limit}")
        if unpacked > max(RATIO_FREE_BYTES, self.max_ratio * packed):
            ratio = f"{self.max_ratio:,} times"
            raise LogError("too_large", f"the file unpacks to more than {ratio} its size")


def _position_as_name(value: object) -> object:
    """A position as text: 3 is `3`."""
    return str(value) if type(value) is int else value


ColumnName = Annotated[str, Field(min_length=1), BeforeValidator(_position_as_name)]


class ColumnNames(BaseModel):
    """Which columns hold what. None: found by the usual names, whatever their case.

    A number is the position of a column, from 1, where no column has that name. A time `date+clock`
    joins a column of days and a column of times of day.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    user: ColumnName | None = None
    item: ColumnName | None = None
    time: ColumnName | None = None

    @property
    def are_positions(self) -> bool:
        """Whether all three are given, and by position."""
        given = (self.user, self.item, *(self.time or "").split("+"))
        return all(name is not None and name.isdecimal() for name in given)


class Dialect(BaseModel):
    """How a text file writes a log. None: found by looking.

    A file is taken to have no header if all columns are given by position.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    delimiter: Annotated[str, Field(min_length=1, max_length=8)] | None = Field(
        default=None,
        description="What separates fields: one character or more (`::`), `tab`, or `blanks` (any "
        "number of blanks and tabs). Quotes mean nothing to delimiters of several characters.",
    )
    header: bool | None = Field(
        default=None, description="Whether the first line has the names of the columns."
    )
    time_format: Annotated[str, Field(min_length=2, max_length=100)] | None = Field(
        default=None,
        description="How times are written, in strptime's directives, e.g. `%d/%m/%Y %H:%M`. "
        "Without a zone they are UTC.",
    )


class Reading(BaseModel):
    """How a log was read.

    Attributes:
        format: of the (first) file, or `table`.
        files: how many.
        delimiter, header: of a text file.
        columns: names of the user, item and time column, as the source has them.
        time_reason: why this column is the time.
        other_times: columns that could be the time as well, by their names.
        times: what the values of the time column are.
        first_rows: user, item and time of the first rows, as the source writes them.
    """

    model_config = ConfigDict(extra="forbid")

    format: str
    files: int = 1
    delimiter: str | None = None
    header: bool | None = None
    columns: tuple[str, str, str]
    time_reason: str
    other_times: list[str] = []
    times: str
    first_rows: list[tuple[str, str, str]] = []

    def at_most(self, length: int) -> Self:
        """The same, with texts cut to `length` characters."""
        cut = [tuple(text[:length] for text in row) for row in self.first_rows]
        return self.model_copy(update={"first_rows": cut})


@dataclass(frozen=True, eq=False)
class Interactions:
    """A whole log, sorted by user (bytes of the id), then time (ties: order of the file).

    The arrays of a log with more rows than `Limits.max_rows_in_memory` are mapped from temporary
    files.

    Attributes:
        user_codes: int32[N], positions in `user_ids`; never decreasing.
        item_codes: int32[N], positions in `item_ids`, which are numbered by first appearance.
        times: int64[N] if every value is a whole number that fits, else float64[N].
        reading: how it was read; None of a log that was not.
    """

    user_codes: Codes
    item_codes: Codes
    times: Times
    user_ids: list[str]
    item_ids: list[str]
    reading: Reading | None = None

    def fingerprint(self) -> str:
        """A sha256 of the interactions alone, as 64 hexadecimal digits.

        The same rows give the same fingerprint whatever their format, packing or order, except that
        rows of one user at one time count in the order of the source. Manifests and checkpoints
        name their log by it. `data/fingerprint.py` defines the bytes.

        The service's dataset has another fingerprint: the sha256 of its normalised Parquet file
        (`write_normalised`), which is the address of that file in the store.
        """
        # Here, because fingerprints need pyarrow, and the service's API needs none of it.
        from td3engine.data.fingerprint import fingerprint  # noqa: PLC0415

        return fingerprint(self)


class LogStatistics(BaseModel):
    """The size of a log and the time it spans, in its own unit of time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    users: int
    items: int
    interactions: int
    time_min: int | float
    time_max: int | float


def describe(log: Interactions) -> LogStatistics:
    """Counts and time span of a log (which has at least one row)."""
    return LogStatistics(
        users=len(log.user_ids),
        items=len(log.item_ids),
        interactions=len(log.times),
        time_min=log.times.min().item(),
        time_max=log.times.max().item(),
    )
