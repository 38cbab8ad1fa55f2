"""Read a log: from files in any supported format, or from a table in memory. Imports no torch."""

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pyarrow as pa

from td3engine.data.readers.batches import Batch, Collected, collect_batches
from td3engine.data.readers.blocks import CheckedBlocks
from td3engine.data.readers.format import FileSource, Format, Seen
from td3engine.data.readers.registry import FORMATS
from td3engine.data.readers.resolution import unit_of
from td3engine.data.readers.tables import ArrowTable, table_batches
from td3engine.data.types import ColumnNames, Dialect, Interactions, Limits, LogError, Reading

COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
MAGIC_BYTES = max(len(each.magic) for each in FORMATS)
NO_MEMORY = "the log needs more memory than it may have"

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A file, a folder of files, or several files: one log."""


def format_of_name(name: str) -> str | None:
    """The format that a file's name tells, by its name: `x.csv.gz` is csv. None: it tells none."""
    path = Path(name.lower())
    if path.suffix in COMPRESSED_SUFFIXES:
        path = path.with_suffix("")
    return next((each.name for each in FORMATS if path.suffix in each.suffixes), None)


def read_log(
    source: Files | ArrowTable,
    *,
    columns: ColumnNames | Mapping[str, str | int] | None = None,
    delimiter: str | None = None,
    header: bool | None = None,
    time_format: str | None = None,
    limits: Limits | None = None,
    format: str | Sequence[str | None] | None = None,  # noqa: A002 (the natural word, and only ever a keyword)
    scratch: Path | None = None,
) -> Interactions:
    """Reads a log from files or from a table.

    A file is CSV, TSV, RecBole `.inter`, JSON lines or Parquet; text may be packed with gzip, zstd,
    bzip2 or xz. Content goes before the name: compression and Parquet are told by their first
    bytes, and a delimiter that the header does not have is sniffed. Several files are one log, in
    their order; of a folder these are all files below it, sorted by name, without hidden ones and
    those whose name starts with `_`.

    A table is a pandas or polars DataFrame, or any other object with `__arrow_c_stream__` (pyarrow
    Table, RecordBatch, RecordBatchReader). The index of a DataFrame is ignored.

    Args:
        source: path of a file or a folder, a list of paths, or the table.
        columns: which columns hold what, e.g. `{"user": "buyer"}`, or `{"user": 1, "item": 2,
            "time": 4}` of a file without a header; `{"time": "date+clock"}` joins two columns.
            None finds all by the usual names.
        delimiter: of text: one character or more, `tab` or `blanks`; None: found by looking.
        header: whether text has one; None: unless all columns are positions.
        time_format: how times are written, in strptime's directives; None: numbers or ISO dates.
        limits: what the log may cost. Its limits on bytes are for files.
        format: of the file, by the name in `readers/registry.py`; None goes by the file's name,
            then by its first bytes. A list has one for each file.
        scratch: folder for the temporary files of a log with more than `max_rows_in_memory` rows
            (32 bytes a row, and ids); None is the system's.

    Raises:
        LogError: the log cannot be read or used. `line` is the line of a text file, and the row,
            from 1, of a Parquet file or a table.
        OSError: there is no such file, or it cannot be opened.
        TypeError: `source` is neither a path nor a table.
        ValueError: there is no such format, or a table was given one.
        pydantic.ValidationError: wrong `columns`, `delimiter` or `time_format`.
    """
    names = ColumnNames.model_validate(columns or {})
    dialect = Dialect(delimiter=delimiter, header=header, time_format=time_format)
    limits = limits or Limits()
    try:
        if _are_files(source):
            source = cast("Files", source)
            return read_files(source, names, dialect, limits, format, scratch)
        if not hasattr(source, "__arrow_c_stream__"):
            kind = f"{type(source).__module__}.{type(source).__qualname__}"
            raise TypeError(
                "read_log takes a path, a DataFrame or an Arrow table (an object with "
                f"__arrow_c_stream__, which pandas has from 2.2 on), not a {kind}"
            )
        if format is not None:
            raise ValueError(f"a table in memory has no file format, such as {format!r}")
        seen = Seen()
        table = cast("ArrowTable", source)
        with closing(table_batches(table, names, limits, seen)) as batches:
            log, found = collect_batches(batches, limits, scratch, time_format)
        return replace(log, reading=_reading("table", 1, seen, found, log))
    except (MemoryError, pa.lib.ArrowCapacityError) as error:
        raise LogError("too_large", NO_MEMORY) from error


def _are_files(source: object) -> bool:
    each = source if isinstance(source, list | tuple) else [source]
    return all(isinstance(path, str | os.PathLike) for path in each)


def read_files(
    source: Files,
    columns: ColumnNames,
    dialect: Dialect,
    limits: Limits,
    names: str | Sequence[str | None] | None = None,
    scratch: Path | None = None,
    labels: Sequence[str] | None = None,
) -> Interactions:
    """What `read_log` reads of files; raises MemoryError or pyarrow's where there is none.

    Args:
        source: the files.
        columns, dialect, limits, scratch: as `read_log`.
        names: `format` of `read_log`.
        labels: what errors call the files; None: by their names.
    """
    paths = _paths_of(source)
    if len(paths) > limits.max_files:
        raise LogError("too_large", f"there are {len(paths):,} files; at most {limits.max_files:,}")
    size = sum(path.stat().st_size for path in paths)
    if size > limits.max_bytes:
        what = "the file has" if len(paths) == 1 else f"the {len(paths):,} files have"
        raise LogError(
            "too_large", f"{what} {size:,} bytes; at most {limits.max_bytes:,} are allowed"
        )
    formats = [names] * len(paths) if names is None or isinstance(names, str) else list(names)
    labels = labels or [path.name for path in paths]
    files = _Files(paths, labels, formats, columns, dialect, limits)
    with closing(files.batches()) as batches:
        log, found = collect_batches(batches, limits, scratch, dialect.time_format)
    return replace(log, reading=_reading(files.format, len(paths), files.seen, found, log))


def _paths_of(source: Files) -> list[Path]:
    """The files of a log, in their order.

    Raises:
        LogError: `empty_file`: there are none.
    """
    given = [source] if isinstance(source, str | os.PathLike) else source
    paths: list[Path] = []
    for path in map(Path, given):
        if not path.is_dir():
            paths.append(path)
            continue
        below = (each.relative_to(path) for each in path.rglob("*") if each.is_file())
        # Spark and its kin leave marks and checksums beside their parts.
        kept = (each for each in below if not any(part[0] in "._" for part in each.parts))
        paths += [path / each for each in sorted(kept)]
    if not paths:
        raise LogError("empty_file", "there are no files to read")
    return paths


@dataclass
class _Files:
    """The files of a log, read one after the other.

    Attributes:
        paths, labels, formats: of each file; a format of None is found by looking.
        columns: which columns hold what; the first file decides for all.
        dialect: how text files write a log.
        limits: what all files together may cost.
        format: of the first file, once it has been opened.
        seen: what its reader told.
    """

    paths: list[Path]
    labels: Sequence[str]
    formats: Sequence[str | None]
    columns: ColumnNames
    dialect: Dialect
    limits: Limits
    format: str = ""
    seen: Seen = field(default_factory=Seen)

    def batches(self) -> Generator[Batch, None, None]:
        """The rows of all files.

        Raises:
            LogError: with the name of the file, if there are several.
        """
        several, unpacked = len(self.paths) > 1, 0
        for path, label, name in zip(self.paths, self.labels, self.formats, strict=True):
            seen = Seen() if self.format else self.seen
            left = max(1, self.limits.max_unpacked_bytes - unpacked)
            limits = self.limits.model_copy(update={"max_unpacked_bytes": left})
            source = FileSource(path, self.columns, self.dialect, limits, seen)
            try:
                with closing(self._of_file(source, name)) as batches:
                    for batch in batches:
                        batch.file = label if several else ""
                        yield batch
            except LogError as error:
                if not several:
                    raise
                raise LogError(
                    error.code, f"{label}: {error.message}", line=error.line, column=error.column
                ) from error
            unpacked += seen.unpacked
            if several and not self.columns.are_positions:
                self.columns = _same_columns(self.columns, self.seen)

    def _of_file(self, source: FileSource, name: str | None) -> Generator[Batch, None, None]:
        with source.path.open("rb") as file:
            start = file.read(MAGIC_BYTES)
        if not start:
            raise LogError("empty_file", "the file is empty")
        chosen = _format_of(source.path, start, source.limits, name)
        self.format = self.format or chosen.name
        yield from chosen.read(source)


def _same_columns(asked: ColumnNames, seen: Seen) -> ColumnNames:
    """The columns of the first file, to be looked for in the next."""
    if seen.roles is None:
        return asked
    user, item, time = seen.roles.names
    listed = len(seen.roles.positions) == 2
    return ColumnNames(user=user, item=item, time=asked.time if listed else time)


def _reading(name: str, files: int, seen: Seen, found: Collected, log: Interactions) -> Reading:
    roles = seen.roles
    assert roles is not None, "a reader told its columns before the first batch"
    times = {"number": "numbers", "date": "dates", "moment": "moments"}[found.times]
    if len(roles.positions) == 2:
        times = "positions in lists"
    elif found.times == "number":
        unit = unit_of(float(log.times.min()), float(log.times.max()))
        times = unit or "numbers of no known unit, of which only the order counts"
    else:
        times += ", as seconds since 1970 in UTC"
    return Reading(
        format=name,
        files=files,
        delimiter=seen.delimiter,
        header=seen.header,
        columns=roles.names,
        time_reason=roles.time_reason,
        other_times=list(roles.other_times),
        times=times,
        first_rows=found.first_rows,
    ).at_most(80)


def _format_of(path: Path, start: bytes, limits: Limits, name: str | None) -> Format:
    """The format of a file that is not empty: by magic bytes, then by name, then by a guess."""
    for each in FORMATS:
        if each.magic and start.startswith(each.magic):
            return each
    if name is None:
        name = format_of_name(path.name)
    if name is None:
        with CheckedBlocks(path, limits) as blocks:
            first = next(blocks, b"")
        return next(each for each in FORMATS if each.looks_like(first))
    by_name = {each.name: each for each in FORMATS}
    if name not in by_name:
        raise ValueError(f"there is no format {name!r}; there are {', '.join(by_name)}")
    if by_name[name].magic:
        problem = f"the file is not {name} (if it is packed, it must be unpacked)"
        raise LogError("bad_format", problem)
    return by_name[name]
