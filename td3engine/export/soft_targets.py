"""The k most probable items of each synthetic position, as a Parquet table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from td3engine.errors import UnusableError
from td3engine.export.registry import ExportOptions
from td3engine.files import new_file
from td3engine.summary.bundle import Bundle
from td3engine.summary.labelled import AnySummary
from td3engine.summary.tucker import TuckerSummary

SOFT_FORMAT = "td3-soft-2"
SCORES_AT_ONCE = 4_000_000  # 32 MiB in float64; a chunk needs a few arrays of this size
TOP_K = 200


def soft_top_k(
    summary: AnySummary, item_ids: Sequence[str], k: int = TOP_K, *, renormalise: bool = False
) -> pa.Table:
    """The k most probable items of each synthetic position, of its input and of its target.

    Args:
        summary: the factors; S_ab = softmax(C_ab V^T) is computed a few positions at a time.
        item_ids: the id of each row of V.
        k: items a position, at most all n.
        renormalise: whether the k probabilities are divided by their sum.

    Returns:
        Columns sequence and position (int32), target (bool; false: input), item_id (string),
        probability (float32), sorted by sequence, position, target, falling probability, item
        index. A summary without a factor Y has rows of inputs only. The schema's metadata has one
        key `td3`: JSON with format, users, length, items, k, own_targets, renormalised, and the sum
        of the k probabilities before that (`held_mean` and `held_least` over all distributions,
        `left_mean` = 1 - `held_mean`).

    Raises:
        UnusableError: k is not positive.
    """
    if k < 1:
        raise UnusableError(f"the number of items a position must be positive, not {k}")
    own = not isinstance(summary, TuckerSummary) or summary.Y is not None
    # (mu, zeta, 1 or 2, d): at each position the input, and the target if it differs.
    sequences = summary.soft_sequences()
    C_UTRD = torch.stack([sequences.inputs, *([sequences.targets] if own else [])], 2)
    users, length, roles, width = C_UTRD.shape
    n_items = len(summary.V)
    k = min(k, n_items)
    V_ND = summary.V.double()
    chunks = [
        _top(C_PD.double() @ V_ND.T, k)
        for C_PD in C_UTRD.reshape(-1, width).split(max(1, SCORES_AT_ONCE // n_items))
    ]
    items_PK = torch.cat([items for items, _ in chunks])
    probability_PK = torch.cat([probability for _, probability in chunks])
    held_P = probability_PK.double().sum(-1)
    if renormalise:
        probability_PK = (probability_PK.double() / held_P[:, None]).float()
    metadata = {
        "format": SOFT_FORMAT,
        "users": users,
        "length": length,
        "items": n_items,
        "k": k,
        "own_targets": own,
        "renormalised": renormalise,
        "held_mean": float(held_P.mean()),
        "held_least": float(held_P.min()),
        "left_mean": float(1 - held_P.mean()),
    }
    columns = _position_columns(users, length, roles, k) | {
        "item_id": pa.array(item_ids, pa.string()).take(pa.array(items_PK.flatten().numpy())),
        "probability": probability_PK.flatten().numpy(),
    }
    table = pa.table(columns)
    return table.replace_schema_metadata({"td3": json.dumps(metadata, sort_keys=True)})


def _position_columns(users: int, length: int, roles: int, k: int) -> dict[str, NDArray[Any]]:
    """The columns that say to which position, and to its input or target, each row belongs."""
    return {
        "sequence": np.repeat(np.arange(users, dtype=np.int32), length * roles * k),
        "position": np.tile(np.repeat(np.arange(length, dtype=np.int32), roles * k), users),
        "target": np.tile(np.repeat(np.arange(roles) == 1, k), users * length),
    }


def _top(scores_PN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Item indices int64 (P, k) and probabilities float32 (P, k), falling, on the CPU.

    The order is by the float32 probabilities that are written, ties by item index. `topk` alone
    does not define which of several equal items it returns.
    """
    probability_PN = scores_PN.softmax(-1).float().cpu()
    least_P1 = probability_PN.topk(k).values[:, -1:]
    above, equal = probability_PN > least_P1, probability_PN == least_P1
    room = k - above.sum(-1, keepdim=True)
    in_top_PN = above | (equal & (equal.cumsum(-1) <= room))
    items_PK = in_top_PN.nonzero()[:, 1].view(-1, k)
    falling = probability_PN.gather(1, items_PK).sort(descending=True, stable=True)
    return items_PK.gather(1, falling.indices), falling.values


def write_soft(table: pa.Table, out: Path) -> None:
    """Write a table of `soft_top_k` as Parquet, whole or not at all.

    Raises:
        OutputExistsError: there is such a file already.
    """
    with new_file(out) as file:
        pq.write_table(table, file, compression="zstd", use_dictionary=["item_id"])


def export_soft(bundle: Bundle, out: Path, options: ExportOptions, device: torch.device) -> str:
    """The export `soft`: the most probable items of each position."""
    del device  # computed in float64 on the CPU, so that a GPU gives the same file
    table = soft_top_k(
        bundle.factors, bundle.item_ids, options.top_k, renormalise=options.renormalise
    )
    write_soft(table, out)
    metadata = json.loads(table.schema.metadata[b"td3"])
    mean, least = metadata["held_mean"], metadata["held_least"]
    return (
        f"{metadata['k']} of {metadata['items']} items a position, which hold {mean:.1%} of the "
        f"probability on average, {least:.1%} at least"
    )
