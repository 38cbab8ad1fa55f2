"""The normalised log: a Parquet file of indexed users, items and times. Imports no torch."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from td3engine.data.types import Interactions, LogError
from td3engine.files import atomic_file

NORMALISED_NAMES = ["user_id", "item_id", "timestamp"]
ROW_GROUP_ROWS = 2**20


def write_normalised(log: Interactions, path: Path) -> str:
    """Writes the normalised Parquet file (atomically) and returns its sha256.

    The sha256 is the address of the file's bytes in the service's store, and there the fingerprint
    of the dataset. It is not `Interactions.fingerprint()`: pyarrow writes its version into every
    file, so the same log gives the same bytes only as long as pyarrow is the same.
    """
    table = pa.Table.from_arrays(
        [
            pa.DictionaryArray.from_arrays(log.user_codes, pa.array(log.user_ids, pa.string())),
            pa.DictionaryArray.from_arrays(log.item_codes, pa.array(log.item_ids, pa.string())),
            pa.array(log.times),
        ],
        NORMALISED_NAMES,
    )
    # Every row group has the whole dictionary, so one of more ids than rows only makes it longer.
    ids = {"user_id": log.user_ids, "item_id": log.item_ids}
    columns_of_few_ids = [name for name, texts in ids.items() if len(texts) <= ROW_GROUP_ROWS]
    with atomic_file(path) as file:
        # Every setting that shapes the bytes is explicit, so that a new default cannot change them.
        pq.write_table(
            table,
            file,
            row_group_size=ROW_GROUP_ROWS,
            version="2.6",
            data_page_version="1.0",
            use_dictionary=columns_of_few_ids,
            compression="zstd",
            compression_level=3,
            write_statistics=False,
            data_page_size=2**20,
            dictionary_pagesize_limit=2**20,
            store_schema=True,
        )
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_normalised(path: Path) -> Interactions:
    """Reads what `write_normalised` wrote.

    Raises:
        LogError: `bad_format`, the file is something else.
        OSError: there is no such file, or it cannot be opened.
    """
    with path.open("rb") as file:
        try:
            table = pq.read_table(file, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise LogError("bad_format", f"not a normalised log: {error}") from error
    kinds = [str(kind) for kind in table.schema.types]
    ids = "dictionary<values=string, indices=int32, ordered=0>"
    if table.schema.names != NORMALISED_NAMES or kinds not in (
        [ids, ids, "int64"],
        [ids, ids, "double"],
    ):
        raise LogError("bad_format", f"not a normalised log: its columns are {kinds}")
    if not table.num_rows or any(column.null_count for column in table.columns):
        raise LogError("bad_format", "not a normalised log: it has no rows, or empty values")
    table = table.unify_dictionaries().combine_chunks()
    users, items, times = (column.chunk(0) for column in table.columns)
    log = Interactions(
        user_codes=users.indices.to_numpy(),
        item_codes=items.indices.to_numpy(),
        times=times.to_numpy(),
        user_ids=users.dictionary.to_pylist(),
        item_ids=items.dictionary.to_pylist(),
    )
    steps = np.diff(log.user_codes)
    if np.any(steps < 0) or np.any((steps == 0) & (np.diff(log.times) < 0)):
        raise LogError("bad_format", "not a normalised log: it is not sorted by user, then time")
    return log
