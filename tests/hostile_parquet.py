"""Parquet files whose footer lies, or whose damage pyarrow does not survive."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

_OPTIONAL, _REQUIRED = b"\x25\x02", b"\x25\x00"  # a column's field `repetition_type`
_NAME_OF_USER = b"\x18\x04user"  # the field behind it: `name`


def crashing() -> bytes:
    """The footer calls a column required that has been written as optional. pyarrow 26 throws an
    exception through C code when it is asked for that column's size, which ends the process.
    """
    buffer = io.BytesIO()
    pq.write_table(pa.table({"user": ["u", "v"], "item": ["i", "j"], "time": [1, 2]}), buffer)
    content = buffer.getvalue()
    assert content.count(_OPTIONAL + _NAME_OF_USER) == 1
    return content.replace(_OPTIONAL + _NAME_OF_USER, _REQUIRED + _NAME_OF_USER)


def bomb(rows: int, *, lying: bool) -> bytes:
    """Next to nothing that unpacks to one row group with one page of `rows` ids of 1 MiB.

    Args:
        rows: how many.
        lying: the footer says that the column has one byte when unpacked.
    """
    ids = pa.array(["x" * 2**20] * rows, pa.large_string())
    table = pa.table({"user": ids, "item": ["i"] * rows, "time": list(range(rows))})
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        data_page_size=2**31 - 1,
    )
    content = buffer.getvalue()
    if not lying:
        return content
    column = pq.read_metadata(io.BytesIO(content)).row_group(0).column(0)
    size = _varint(column.total_uncompressed_size)
    assert content.count(size) == 1
    return content.replace(size, _varint(1, len(size)))


def claiming_rows(claimed: int) -> bytes:
    """A file of 100 rows whose footer counts `claimed` of them."""
    count = 100
    ids = [f"u{row}" for row in range(count)]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"user": ids, "item": ids, "time": list(range(count))}), buffer)
    content = buffer.getvalue()
    length = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - length : -8].replace(_varint(count), _varint(claimed))
    return content[: -8 - length] + footer + len(footer).to_bytes(4, "little") + content[-4:]


def _varint(number: int, length: int = 0) -> bytes:
    """A number as Thrift's compact protocol writes it, filled up to `length` bytes."""
    left, out = 2 * number, bytearray()
    while left >= 0x80 or len(out) + 1 < length:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*out, left])
