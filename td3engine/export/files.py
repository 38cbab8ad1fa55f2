"""The files that exports are written to, whole or not at all."""

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from td3engine.errors import OutputExistsError, UnusableError

CSV_HEADER = ("user_id", "item_id", "timestamp")
INTER_HEADER = ("user_id:token", "item_id:token", "timestamp:float")
# What pandas, and so RecBole, reads as "no value" where it stands alone in a field.
MISSING_VALUES = frozenset(
    {"#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"}
    | {"<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
)


def write_soft(table: pa.Table, out: Path) -> None:
    """Write what `soft_top_k` gave as Parquet, whole or not at all.

    Raises:
        OutputExistsError: there is such a file already.
    """
    with _whole_file(out) as file:
        pq.write_table(table, file, compression="zstd", use_dictionary=["item_id"])


def write_csv(sequences_RT: Tensor, item_ids: Sequence[str], copies: int, out: Path) -> None:
    """Write sampled sequences as a log, `user_id,item_id,timestamp`, whole or not at all.

    User `s3-17` is the 17th sequence (from 0) of synthetic user 3; the time is the position.
    Fields are quoted where they must be (RFC 4180); a NUL, which no CSV reader agrees on, is not.

    Args:
        sequences_RT: item indices, int64 (users * copies, zeta).
        item_ids: the id of each item.
        copies: sequences a synthetic user.
        out: the file.

    Raises:
        OutputExistsError: there is such a file already.
        UnusableError: an item id holds a NUL.
    """
    _refuse_ids(item_ids, "a CSV file", lambda item_id: "\0" in item_id)
    with _whole_file(out) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(CSV_HEADER)
        writer.writerows(_events(sequences_RT, item_ids, copies))


def write_inter(sequences_RT: Tensor, item_ids: Sequence[str], copies: int, out: Path) -> None:
    """Write sampled sequences as RecBole's `.inter` (tabs, typed header), whole or not at all.

    Arguments as for `write_csv`.

    Raises:
        OutputExistsError: there is such a file already.
        UnusableError: an item id that the format cannot hold: RecBole reads it with pandas, which
            takes tabs and line ends apart, a quotation mark as the start of a quoted field, and
            words such as `NA` for no value.
    """
    _refuse_ids(item_ids, "a .inter file", _not_for_inter)
    with _whole_file(out) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        text.write("\t".join(INTER_HEADER) + "\n")
        for user, item, time in _events(sequences_RT, item_ids, copies):
            text.write(f"{user}\t{item}\t{time}\n")


def _events(
    sequences_RT: Tensor, item_ids: Sequence[str], copies: int
) -> Iterator[tuple[str, str, int]]:
    """User, item and time of every event."""
    for row, items in enumerate(sequences_RT.tolist()):
        user = "s{}-{}".format(*divmod(row, copies))
        for time, item in enumerate(items):
            yield user, item_ids[item], time


def _not_for_inter(item_id: str) -> bool:
    return (
        '"' in item_id
        or any(character < " " or character == "\x7f" for character in item_id)
        or item_id in MISSING_VALUES
    )


def _refuse_ids(item_ids: Sequence[str], where: str, refused: Callable[[str], bool]) -> None:
    """Refuse ids before anything is written; also those that no sampled sequence holds, so that
    whether an export works does not hang on its seed."""
    for item_id in item_ids:
        if refused(item_id):
            raise UnusableError(f"{where} cannot hold the item id {item_id!r}; take another format")


def refuse_unwritable(out: Path) -> None:
    """Say before a long computation that its file cannot be written.

    Raises:
        OutputExistsError: there is such a file already.
        UnusableError: there is no such folder.
    """
    if out.exists():
        raise OutputExistsError(f"{out} exists already; take another name")
    if not out.parent.is_dir():
        raise UnusableError(f"there is no folder {out.parent} to write {out.name} to")


@contextmanager
def _whole_file(out: Path) -> Iterator[BinaryIO]:
    """A new file that gets its name once it is complete; no half of it stays behind."""
    refuse_unwritable(out)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            yield file
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
