"""Small Parquet files whose footer promises more or less than there is; each can be read safely."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 100


def _content() -> bytes:
    ids = [f"u{row}" for row in range(ROWS)]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"user": ids, "item": ids, "time": list(range(ROWS))}), buffer)
    return buffer.getvalue()


def claiming_rows(claimed: int) -> bytes:
    """A file of `ROWS` rows whose footer counts `claimed` of them."""
    content = _content()
    length = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - length : -8].replace(_varint(ROWS), _varint(claimed))
    return content[: -8 - length] + footer + len(footer).to_bytes(4, "little") + content[-4:]


def _varint(number: int) -> bytes:
    """A number as Thrift's compact protocol writes it."""
    left, out = 2 * number, bytearray()
    while left >= 0x80:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*out, left])
