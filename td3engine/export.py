"""A summary for other trainers: soft targets as Parquet, or sampled item sequences as text.

A trainer that knows nothing of the method cannot read factors. It can read, for each synthetic
position, the k most probable items (`soft_top_k`), or ordinary item sequences drawn from the
summary (`sample_sequences`), in the files that it reads anyway. docs/exports.md has the formulas.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from td3engine.backbones import build_backbone
from td3engine.config import DistillConfig
from td3engine.errors import OutputExistsError, UnusableError
from td3engine.learner import learn
from td3engine.model import Recommender
from td3engine.seeding import Purpose, generator
from td3engine.summary import Summary

SOFT_FORMAT = "td3-soft-2"
SCORES_AT_ONCE = 4_000_000  # 32 MiB in float64; a chunk needs a few arrays of this size
TOP_K = 200
COPIES = 20
TEMPERATURE = 0.6
GUIDANCE = 1.0
CSV_HEADER = ("user_id", "item_id", "timestamp")
INTER_HEADER = ("user_id:token", "item_id:token", "timestamp:float")
# What pandas, and so RecBole, reads as "no value" where it stands alone in a field.
MISSING_VALUES = frozenset(
    {"#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"}
    | {"<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
)


def soft_top_k(
    summary: Summary, item_ids: Sequence[str], k: int = TOP_K, *, renormalise: bool = False
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
    C_UTRD = torch.stack([summary.read, *([summary.predicted] if own else [])], 2)
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


@dataclass(frozen=True)
class Guide:
    """A learner that was trained on the summary and now helps to draw from it.

    Attributes:
        model: its backbone and item table.
        parameters: encoder parameters (P).
        table: scoring table F (n, f).
        weight: g in the mix (1 - g) summary + g learner.
    """

    model: Recommender
    parameters: Tensor
    table: Tensor
    weight: float


def train_guide(
    summary: Summary, config: DistillConfig, *, weight: float = GUIDANCE, seed: int = 0
) -> Guide:
    """A learner for guided sampling, trained on nothing but the summary (`shared-items`).

    Raises:
        UnusableError: the weight is not within [0, 1].
        DivergedError: the learner's training produced numbers that are not finite.
    """
    if not 0 <= weight <= 1:
        raise UnusableError(f"guidance must be from 0 to 1, not {weight}")
    backbone = build_backbone(config.backbone, config.data.max_history)
    draw = generator(seed, Purpose.EXPORT_LEARNER, device=summary.V.device.type)
    learned = learn(summary, backbone, config.learner, "shared-items", draw)
    model = Recommender(backbone, *summary.V.shape)
    return Guide(model, learned.parameters, learned.table, weight)


@torch.no_grad()
def sample_sequences(
    summary: Summary,
    *,
    copies: int = COPIES,
    temperature: float = TEMPERATURE,
    guide: Guide | None = None,
    repeats: bool = False,
    seed: int = 0,
) -> Tensor:
    """Item sequences drawn from the summary, int64 (users * copies, zeta), on the CPU.

    Row u * copies + c is the c-th sequence of synthetic user u. Position t of it is drawn from
    softmax(z / temperature) with the scores z = C_ut V^T, and with a guide
    z = (1 - g) C_ut V^T + g (its scores after the items drawn before t) from position 1 on. C_ut is
    the query of what is to be predicted there.

    Args:
        summary: the factors.
        copies: sequences a synthetic user.
        temperature: below 1 prefers probable items more than S does; towards 0 it is the argmax.
        guide: None draws every position by itself, from S alone.
        repeats: whether an item may come twice in a sequence.
        seed: same seed, machine and settings: same sequences.

    Raises:
        UnusableError: settings that cannot work, or fewer items than positions without repeats.
    """
    if copies < 1 or not 0 < temperature < float("inf"):
        raise UnusableError(
            f"copies and temperature must be positive, not {copies} and {temperature}"
        )
    C_UTD = summary.predicted
    users, length, _ = C_UTD.shape
    n_items = len(summary.V)
    if not repeats and n_items < length:
        raise UnusableError(
            f"{n_items} items cannot fill {length} positions without repeats: allow them"
        )
    # One number a draw, all drawn here: how the rows are cut into chunks changes nothing.
    draw = generator(seed, Purpose.EXPORT)
    uniform_RT = torch.rand(users * copies, length, generator=draw, dtype=torch.float64)
    owner_R = torch.arange(users).repeat_interleave(copies)
    return torch.cat(
        [
            _sample_rows(
                C_UTD[owner_R[rows]], summary.V, uniform_RT[rows], temperature, guide, repeats
            )
            for rows in torch.arange(len(owner_R)).split(max(1, SCORES_AT_ONCE // n_items))
        ]
    )


def _sample_rows(
    C_RTD: Tensor,
    V_ND: Tensor,
    uniform_RT: Tensor,
    temperature: float,
    guide: Guide | None,
    repeats: bool,
) -> Tensor:
    """A chunk of whole sequences, int64 (R, zeta), on the CPU."""
    items_RT = torch.empty(uniform_RT.shape, dtype=torch.int64, device=C_RTD.device)
    for t in range(items_RT.shape[1]):
        scores_RN = C_RTD[:, t] @ V_ND.T
        if guide is not None and t > 0:
            guided_RN = _scores_after(guide, items_RT[:, :t])
            scores_RN = (1 - guide.weight) * scores_RN + guide.weight * guided_RN
        scores_RN = scores_RN.double()
        if not repeats:
            scores_RN.scatter_(1, items_RT[:, :t], -torch.inf)
        # The peak goes first: a small temperature would carry scores beyond any float.
        scores_RN = (scores_RN - scores_RN.amax(-1, keepdim=True)) / temperature
        items_RT[:, t] = _draw(scores_RN.softmax(-1), uniform_RT[:, t].to(C_RTD.device))
    return items_RT.cpu()


def _scores_after(guide: Guide, items_RT: Tensor) -> Tensor:
    """The guide's scores of every item after these prefixes, (R, n)."""
    lengths = torch.full((len(items_RT),), items_RT.shape[1], device=items_RT.device)
    states_RF = guide.model.last(guide.parameters, guide.table[items_RT], lengths)
    return states_RF @ guide.table.T


def _draw(probability_RN: Tensor, uniform_R: Tensor) -> Tensor:
    """One item a row, int64 (R): the first whose cumulated probability passes the uniform number.

    An item of probability zero is never drawn: it does not raise the sum, and a number that
    rounds up to the whole sum gives the item at which that sum is first reached.
    """
    sums_RN = probability_RN.cumsum(-1)
    whole_R1 = sums_RN[:, -1:].contiguous()
    drawn = torch.searchsorted(sums_RN, uniform_R[:, None] * whole_R1, right=True)
    return torch.minimum(drawn, torch.searchsorted(sums_RN, whole_R1)).squeeze(-1)


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
