"""Reading a log out of any Parquet file, in batches."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from td3engine.data.readers import arrow
from td3engine.data.readers.batches import Batch
from td3engine.data.readers.format import FileSource, Format
from td3engine.data.types import LogError

# pyarrow's OSError where the memory for a page is missing.
NO_MEMORY_SIGN = "malloc of size"
# Encodings out of which pyarrow makes dictionaries; it has not learned it of the others.
_TO_DICTIONARY = frozenset({"PLAIN", "PLAIN_DICTIONARY", "RLE", "RLE_DICTIONARY", "BIT_PACKED"})
# Ids that are not held as dictionaries are read fewer at once.
PLAIN_BATCH_ROWS = 2**15
# Times of older Spark: 96 bits, of which pyarrow makes nanoseconds that end in 2262 unless told.
_INT96_UNIT = "us"


def parquet_batches(source: FileSource) -> Generator[Batch, None, None]:
    """The rows of a Parquet file whose ids are text or whole numbers, or one list of them a user.

    Raises:
        LogError: any of its codes that a file without lines can have; `line` is the row, from 1.
        MemoryError: there is not enough of it.
    """
    with _errors_named():
        with _opened(source) as opened:
            schema, metadata = opened.schema_arrow, opened.metadata
            if not metadata.num_rows:
                raise LogError("empty_file", "there are no interactions")

            def sample(positions: Sequence[int]) -> list[list[str]]:
                return _sample(source, [schema.names[position] for position in positions])

            roles = arrow.find_in_schema(
                schema.names, list(schema.types), source.columns, source.limits, sample
            )
        source.seen.roles = roles
        names = [schema.names[position] for position in roles.positions]
        source.seen.unpacked = _check_promises(source, metadata, names)
        dictionaries = _dictionary_columns(schema, metadata, names[:2])
        lists = arrow.is_list(schema.field(names[1]).type)
        few = PLAIN_BATCH_ROWS if len(dictionaries) < 2 else arrow.BATCH_ROWS
        rows = arrow.LISTS_AT_ONCE if lists else min(few, arrow.BATCH_ROWS)
        with _opened(source, read_dictionary=dictionaries, pre_buffer=False) as opened:
            batches = opened.iter_batches(rows, columns=names, use_threads=False)
            selected = (batch.select(names) for batch in batches)
            with closing(arrow.row_batches(selected, roles.narrowed())) as pieces:
                count = yield from pieces
        if count != metadata.num_rows:
            problem = f"the footer promises {metadata.num_rows:,} rows, there are {count:,}"
            raise LogError("bad_format", f"the file is not valid Parquet: {problem}")


@contextmanager
def _errors_named() -> Iterator[None]:
    """pyarrow's errors as ours; those of whoever uses the batches pass.

    Raises:
        LogError: `bad_format`.
        MemoryError: there is not enough of it.
    """
    try:
        yield
    except pa.ArrowNotImplementedError as error:
        problem = f"the file uses what pyarrow {pa.__version__} cannot read: {error}"
        remedy = (
            "cast ids to text or to 64-bit numbers, and write the file with plain or dictionary "
            "encoding, and with zstd, snappy or gzip"
        )
        raise LogError("bad_format", f"{problem}; {remedy}") from error
    # pyarrow decodes a damaged column name only when it is read, and without translating.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if NO_MEMORY_SIGN in str(error):
            raise MemoryError(str(error)) from error
        raise LogError("bad_format", f"the file is not valid Parquet: {error}") from error


def _opened(source: FileSource, **options: Any) -> Any:
    return pq.ParquetFile(source.path, coerce_int96_timestamp_unit=_INT96_UNIT, **options)


def _sample(source: FileSource, names: list[str]) -> list[list[str]]:
    with _opened(source) as opened:
        batches = opened.iter_batches(arrow.SAMPLED_ROWS, columns=names, use_threads=False)
        first = next(iter(batches), None)
    if first is None:
        return [[] for _ in names]
    return arrow.as_texts([first.column(name) for name in names])


def _check_promises(source: FileSource, metadata: Any, names: list[str]) -> int:
    """Refuses by what the footer says; returns the bytes when unpacked.

    Against a lying footer there are the checks made while rows arrive, and the limit on the memory
    of the process that reads uploads.
    """
    limits = source.limits
    if metadata.num_rows > limits.max_rows:
        raise LogError(
            "too_many_rows",
            f"the file has {metadata.num_rows:,} rows; at most {limits.max_rows:,} are allowed",
        )
    unpacked = sum(int(chunk.total_uncompressed_size) for chunk in _chunks(metadata, names))
    limits.check_unpacked(unpacked, source.path.stat().st_size)
    return unpacked


def _chunks(metadata: Any, names: list[str]) -> Iterator[Any]:
    """What the footer says of each column chunk of these columns, lists included."""
    for group in range(metadata.num_row_groups):
        chunks = metadata.row_group(group)
        for chunk in (chunks.column(index) for index in range(chunks.num_columns)):
            path = chunk.path_in_schema
            if path in names or path.partition(".list.")[0] in names:
                yield chunk


def _dictionary_columns(schema: Any, metadata: Any, names: list[str]) -> list[str]:
    """Those of these columns that can come as dictionaries: a long id that repeats is held once."""
    return [
        name
        for name in names
        if not arrow.is_list(schema.field(name).type)
        and all(set(chunk.encodings) <= _TO_DICTIONARY for chunk in _chunks(metadata, [name]))
    ]


FORMATS = (Format("parquet", (".parquet", ".pq"), parquet_batches, magic=b"PAR1"),)
