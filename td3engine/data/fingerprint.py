"""The fingerprint of a log: a sha256 that depends on nothing but the interactions.

Canonical bytes, little-endian:

1. `td3 log 1` and a line feed.
2. Three uint64: users, items, rows. One byte: `i` if times are int64, `f` if they are float64.
3. Users, ordered by the bytes of their ids (UTF-8): of all, the length of the id in bytes and the
   number of the user's rows (two uint64 each); then of all, the bytes of the id.
4. Items, ordered by the bytes of their ids: of all, the length of the id in bytes (uint64); then of
   all, the bytes of the id.
5. Rows, by user in the order of 3, then by time, then in the order of the source: the item, as its
   position in the order of 4 (uint32), and the time (int64 or float64; zero is positive).

The order of rows in the source therefore does not matter, except among rows of one user at one
time. The file's format, packing and other columns do not matter either, nor does the version of any
library.
"""

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

if TYPE_CHECKING:
    from td3engine.data.types import Interactions

MAGIC = b"td3 log 1\n"
ROWS_AT_ONCE = 2**18
IDS_AT_ONCE = 2**16

Positions = NDArray[np.int64]


def fingerprint(log: "Interactions") -> str:
    """The sha256 of a log's canonical bytes, as 64 hexadecimal digits.

    Costs O(rows + ids log ids) and, beside the log, memory for its ids and 32 bytes an id; rows are
    read in parts, so that a log that is mapped from files stays there.

    Args:
        log: every id of which has a row, as that of any log that was read.
    """
    users, user_order = _ordered(log.user_ids)
    items, item_order = _ordered(log.item_ids)
    item_ranks = np.empty(len(items), np.uint32)
    item_ranks[item_order] = np.arange(len(items), dtype=np.uint32)
    counts = _rows_of_users(log.user_codes, len(users))
    starts = np.cumsum(counts) - counts
    digest = hashlib.sha256(MAGIC)
    digest.update(np.array([len(users), len(items), len(log.times)], "<u8").tobytes())
    digest.update(b"i" if log.times.dtype == np.int64 else b"f")
    counts, starts = counts[user_order], starts[user_order]
    digest.update(np.stack([_byte_lengths(users), counts], 1).astype("<u8").data)
    for some in _id_bytes(users):
        digest.update(some)
    digest.update(_byte_lengths(items).astype("<u8").data)
    for some in _id_bytes(items):
        digest.update(some)
    kind = np.dtype([("item", "<u4"), ("time", log.times.dtype.newbyteorder("<"))])
    for rows in _in_parts(starts, counts):
        part = np.empty(len(rows), kind)
        part["item"] = item_ranks[log.item_codes[rows]]
        part["time"] = log.times[rows] + log.times.dtype.type(0)  # of -0.0 it makes 0.0
        digest.update(part.data)
    return digest.hexdigest()


def _ordered(ids: list[str]) -> tuple[pa.Array, Positions]:
    """Ids in the order of their bytes, and the code of each."""
    texts = pa.array(ids, pa.large_string())
    order = pc.sort_indices(texts)
    return texts.take(order), order.to_numpy().astype(np.int64)


def _byte_lengths(texts: pa.Array) -> Positions:
    lengths: Positions = pc.binary_length(texts).to_numpy()
    return lengths


def _id_bytes(texts: pa.Array) -> Iterator[bytes]:
    """The bytes of all ids, one after the other, in parts."""
    for first in range(0, len(texts), IDS_AT_ONCE):
        yield "".join(texts.slice(first, IDS_AT_ONCE).to_pylist()).encode()


def _rows_of_users(codes: NDArray[np.int32], users: int) -> Positions:
    counts = np.zeros(users, np.int64)
    for first in range(0, len(codes), ROWS_AT_ONCE):
        # Codes never decrease: the users of a part are neighbours.
        some = codes[first : first + ROWS_AT_ONCE]
        own = np.bincount(some - some[0])
        counts[some[0] : some[0] + len(own)] += own
    return counts


def _in_parts(starts: Positions, counts: Positions) -> Iterator[Positions]:
    """Rows of users, whose rows are neighbours, in parts of `ROWS_AT_ONCE` rows.

    Args:
        starts: int64[U], first row of each user.
        counts: int64[U], rows of each user.
    """
    ends = np.cumsum(counts)
    shifts = starts - (ends - counts)  # of a user's rows, from the order here to the log's
    total = int(ends[-1]) if len(ends) else 0
    for first in range(0, total, ROWS_AT_ONCE):
        stop = min(first + ROWS_AT_ONCE, total)
        low = int(np.searchsorted(ends, first, side="right"))
        high = int(np.searchsorted(ends, stop, side="left"))
        edges = np.concatenate([[first], np.minimum(ends[low : high + 1], stop)])
        of_user = edges[1:] - edges[:-1]
        yield np.arange(first, stop) + np.repeat(shifts[low : high + 1], of_user)
