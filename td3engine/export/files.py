"""Sampled sequences as text files: CSV and RecBole's `.inter`."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from td3engine.errors import UnusableError
from td3engine.export.registry import ExportOptions
from td3engine.export.sequences import repeats_by_log, sample_sequences, train_guide
from td3engine.files import new_file
from td3engine.summary.bundle import Bundle

CSV_HEADER = ("user_id", "item_id", "timestamp")
INTER_HEADER = ("user_id:token", "item_id:token", "timestamp:float")
# Fields that pandas, and so RecBole, reads as a missing value.
MISSING_VALUES = frozenset(
    {"#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"}
    | {"<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
)


def write_csv(sequences_RT: Tensor, item_ids: Sequence[str], copies: int, out: Path) -> None:
    """Write sampled sequences as a log, `user_id,item_id,timestamp`, whole or not at all.

    User `s3-17` is sequence 17 (from 0) of synthetic user 3. The timestamp is the position. Fields
    are quoted by RFC 4180. CSV readers disagree about NUL, so an id with one is refused.

    Args:
        sequences_RT: item indices, int64 (users * copies, zeta).
        item_ids: the id of each item.
        copies: sequences a synthetic user.
        out: the file.

    Raises:
        OutputExistsError: there is such a file already.
        UnusableError: an item id holds a NUL.
    """
    refuse_csv_ids(item_ids)
    with new_file(out) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(CSV_HEADER)
        writer.writerows(_events(sequences_RT, item_ids, copies))


def write_inter(sequences_RT: Tensor, item_ids: Sequence[str], copies: int, out: Path) -> None:
    """Write sampled sequences as RecBole's `.inter` (tabs, typed header), whole or not at all.

    Arguments as for `write_csv`.

    Raises:
        OutputExistsError: there is such a file already.
        UnusableError: an item id that the format cannot hold. RecBole reads it with pandas, to
            which tabs and line ends are separators, a quotation mark starts a quoted field, and
            words such as `NA` are missing values.
    """
    refuse_inter_ids(item_ids)
    with new_file(out) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        text.write("\t".join(INTER_HEADER) + "\n")
        for user, item, time in _events(sequences_RT, item_ids, copies):
            text.write(f"{user}\t{item}\t{time}\n")


def _events(
    sequences_RT: Tensor, item_ids: Sequence[str], copies: int
) -> Iterator[tuple[str, str, int]]:
    """User, item and timestamp of each event."""
    for row, items in enumerate(sequences_RT.tolist()):
        user = "s{}-{}".format(*divmod(row, copies))
        for time, item in enumerate(items):
            yield user, item_ids[item], time


def refuse_csv_ids(item_ids: Sequence[str]) -> None:
    """Raise UnusableError if a CSV file cannot hold one of these ids."""
    _refuse_ids(item_ids, "a CSV file", lambda item_id: "\0" in item_id)


def refuse_inter_ids(item_ids: Sequence[str]) -> None:
    """Raise UnusableError if a `.inter` file cannot hold one of these ids."""
    _refuse_ids(item_ids, "a .inter file", _not_for_inter)


def _not_for_inter(item_id: str) -> bool:
    return (
        '"' in item_id
        or any(character < " " or character == "\x7f" for character in item_id)
        or item_id in MISSING_VALUES
    )


def _refuse_ids(item_ids: Sequence[str], where: str, refused: Callable[[str], bool]) -> None:
    """Refuse ids before anything is written. Items that no sequence holds count as well: whether
    an export works must not depend on its seed."""
    for item_id in item_ids:
        if refused(item_id):
            raise UnusableError(f"{where} cannot hold the item id {item_id!r}; take another format")


def export_csv(bundle: Bundle, out: Path, options: ExportOptions, device: torch.device) -> str:
    """The export `csv`."""
    refuse_csv_ids(bundle.item_ids)
    return _export_sequences(write_csv, bundle, out, options, device)


def export_inter(bundle: Bundle, out: Path, options: ExportOptions, device: torch.device) -> str:
    """The export `inter`."""
    refuse_inter_ids(bundle.item_ids)
    return _export_sequences(write_inter, bundle, out, options, device)


def _export_sequences(
    write: Callable[[Tensor, Sequence[str], int, Path], None],
    bundle: Bundle,
    out: Path,
    options: ExportOptions,
    device: torch.device,
) -> str:
    """Train the guide, sample, and write; ids have been checked, which must not wait for that."""
    factors, guide = bundle.factors.to(device), None
    repeats = options.repeats
    if repeats is None:
        repeats = repeats_by_log(bundle.manifest)
    if options.guidance is not None:
        config = bundle.manifest.config
        guide = train_guide(factors, config, weight=options.guidance, seed=options.seed)
    sequences = sample_sequences(
        factors,
        copies=options.copies,
        temperature=options.temperature,
        guide=guide,
        repeats=repeats,
        seed=options.seed,
    )
    write(sequences, bundle.item_ids, options.copies, out)
    twice = "an item may come twice" if repeats else "no item comes twice"
    return f"{len(sequences)} sequences of {sequences.shape[1]} events; {twice} in one"
