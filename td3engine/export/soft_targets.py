"""The most probable items of every synthetic position, as a table."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from td3engine.errors import UnusableError
from td3engine.export.registry import ExportOptions
from td3engine.files import new_file
from td3engine.summary.bundle import Bundle
from td3engine.summary.tucker import TuckerSummary

SOFT_FORMAT = "td3-soft-2"
SCORES_AT_ONCE = 4_000_000  # 32 MiB in float64; a chunk needs a few arrays of this size
TOP_K = 200


def soft_top_k(
    summary: TuckerSummary, item_ids: Sequence[str], k: int = TOP_K, *, renormalise: bool = False
) -> pa.Table:
    """The k most probable items of every synthetic position, to be read and to be predicted.

    Args:
        summary: the factors; S_ab = softmax(C_ab V^T) is computed a few positions at a time.
        item_ids: the id of each row of V.
        k: items a position, at most all n.
        renormalise: divide by what the k items hold together, so that they sum to one.

    Returns:
        Columns sequence and position (int32), target (whether the row belongs to what is to be
        predicted at the position, and not to what is read there), item_id (string), probability
        (float32), sorted by sequence, position, target, falling probability, item index. A summary
        whose targets are what is read next has no rows of targets. The schema's metadata has one
        key `td3`: JSON with format, users, length, items, k, own_targets, whether renormalised, and
        the probability that the k items hold (mean and least over all distributions) and leave to
        the others.

    Raises:
        UnusableError: k is not positive.
    """
    if k < 1:
        raise UnusableError(f"the number of items a position must be positive, not {k}")
    own = summary.Y is not None
    # (mu, zeta, 1 or 2, d): at each position what is read, and what is to be predicted.
    sequences = summary.soft_sequences()
    C_UTRD = torch.stack([sequences.inputs, *([sequences.targets] if own else [])], 2)
    users, length, roles, width = C_UTRD.shape
    n_items = len(summary.V)
    k = min(k, n_items)
    V_ND = summary.V.double()
    found = [
        _top(C_PD.double() @ V_ND.T, k)
        for C_PD in C_UTRD.reshape(-1, width).split(max(1, SCORES_AT_ONCE // n_items))
    ]
    items_PK = torch.cat([items for items, _ in found])
    probability_PK = torch.cat([probability for _, probability in found])
    held_P = probability_PK.double().sum(-1)
    if renormalise:
        probability_PK = (probability_PK.double() / held_P[:, None]).float()
    said = {
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
    sequence = np.repeat(np.arange(users, dtype=np.int32), length * roles * k)
    position = np.tile(np.repeat(np.arange(length, dtype=np.int32), roles * k), users)
    target = np.tile(np.repeat(np.arange(roles) == 1, k), users * length)
    table = pa.table(
        {
            "sequence": sequence,
            "position": position,
            "target": target,
            "item_id": pa.array(item_ids, pa.string()).take(pa.array(items_PK.flatten().numpy())),
            "probability": probability_PK.flatten().numpy(),
        }
    )
    return table.replace_schema_metadata({"td3": json.dumps(said, sort_keys=True)})


def _top(scores_PN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Item indices int64 (P, k) and probabilities float32 (P, k), falling, on the CPU.

    Ranked by the rounded probabilities that are written, so that "ties by item index" holds for
    what a reader sees. `topk` alone does not say which of several equal items it takes.
    """
    probability_PN = scores_PN.softmax(-1).float().cpu()
    least_P1 = probability_PN.topk(k).values[:, -1:]
    above, equal = probability_PN > least_P1, probability_PN == least_P1
    room = k - above.sum(-1, keepdim=True)
    kept = above | (equal & (equal.cumsum(-1) <= room))
    items_PK = kept.nonzero()[:, 1].view(-1, k)
    falling = probability_PN.gather(1, items_PK).sort(descending=True, stable=True)
    return items_PK.gather(1, falling.indices), falling.values


def write_soft(table: pa.Table, out: Path) -> None:
    """Write what `soft_top_k` gave as Parquet, whole or not at all.

    Raises:
        OutputExistsError: there is such a file already.
    """
    with new_file(out) as file:
        pq.write_table(table, file, compression="zstd", use_dictionary=["item_id"])


def export_soft(bundle: Bundle, out: Path, options: ExportOptions, device: torch.device) -> str:
    """The export `soft`: the most probable items of every position."""
    del device  # computed in float64 on the CPU, so that a GPU gives the same file
    table = soft_top_k(
        bundle.factors, bundle.item_ids, options.top_k, renormalise=options.renormalise
    )
    write_soft(table, out)
    told = json.loads(table.schema.metadata[b"td3"])
    share = (
        f"{told['held_mean']:.1%} of the probability on average, {told['held_least']:.1%} at least"
    )
    return f"{told['k']} of {told['items']} items a position, which hold {share}"
