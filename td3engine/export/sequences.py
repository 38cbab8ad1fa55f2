"""Item sequences sampled from a summary, for trainers that read ordinary logs.

docs/exports.md has the formulas.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from td3engine.config import REPEATS_FROM, DistillConfig
from td3engine.errors import UnusableError
from td3engine.export.soft_targets import SCORES_AT_ONCE
from td3engine.inner_loop.learner import learn
from td3engine.models.registry import build_backbone
from td3engine.models.trained_model import TrainedModel
from td3engine.runtime.seeding import Purpose, generator
from td3engine.summary.bundle import Manifest
from td3engine.summary.labelled import AnySummary

COPIES = 20
TEMPERATURE = 0.6
GUIDANCE = 1.0


@dataclass(frozen=True)
class Guide:
    """A learner on the summary, whose scores are mixed with the summary's when items are drawn.

    Attributes:
        model: the learner.
        weight: g, in (1 - g) summary + g learner.
    """

    model: TrainedModel
    weight: float


def repeats_by_log(manifest: Manifest) -> bool:
    """Whether sequences should hold items twice: where so many of the log's events repeat an item
    that checkpoints are chosen by protocol `all`."""
    share = manifest.statistics.get("repeat_share", 0.0)
    return float(share) >= REPEATS_FROM


def train_guide(
    summary: AnySummary, config: DistillConfig, *, weight: float = GUIDANCE, seed: int = 0
) -> Guide:
    """Train the learner of guided sampling, on the summary alone (`shared-items`).

    Args:
        summary: the factors.
        config: the summary's settings.
        weight: g, from 0 to 1.
        seed: of the learner.

    Raises:
        UnusableError: the weight is not within [0, 1].
        DivergedError: the learner's parameters are no longer finite.
    """
    if not 0 <= weight <= 1:
        raise UnusableError(f"guidance must be from 0 to 1, not {weight}")
    backbone = build_backbone(config.learner_backbone, config.data.max_history)
    draw = generator(seed, Purpose.EXPORT_LEARNER, device=summary.V.device.type)
    learner = learn(summary, backbone, config.learner, "shared-items", draw)
    return Guide(learner.model, weight)


@torch.no_grad()
def sample_sequences(
    summary: AnySummary,
    *,
    copies: int = COPIES,
    temperature: float = TEMPERATURE,
    guide: Guide | None = None,
    repeats: bool = False,
    seed: int = 0,
) -> Tensor:
    """Item sequences drawn from the summary, int64 (users * copies, zeta), on the CPU.

    Row u * copies + c is sequence c of synthetic user u. Its position t is drawn from
    softmax(z / temperature). Scores are z = C_ut V^T, where C_ut is the query of the target there.
    With a guide, from position 1 on, z = (1 - g) C_ut V^T + g z', where z' are the guide's scores
    after the items drawn before t.

    Args:
        summary: the factors.
        copies: sequences a synthetic user.
        temperature: below 1 sharpens the distribution; towards 0 it is the argmax.
        guide: None: each position is drawn from S alone, independently of the others.
        repeats: whether a sequence may hold an item twice.
        seed: same seed, machine and settings: same sequences.

    Raises:
        UnusableError: copies or temperature are not positive, or there are fewer items than
            positions and no repeats.
    """
    if copies < 1 or not 0 < temperature < float("inf"):
        raise UnusableError(
            f"copies and temperature must be positive, not {copies} and {temperature}"
        )
    C_UTD = summary.soft_sequences().targets
    users, length, _ = C_UTD.shape
    n_items = len(summary.V)
    if not repeats and n_items < length:
        raise UnusableError(
            f"{n_items} items cannot fill {length} positions without repeats: allow them"
        )
    # One uniform number a draw, all here: the result does not depend on the chunks.
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
        # The maximum is subtracted first: a small temperature could overflow otherwise.
        scores_RN = (scores_RN - scores_RN.amax(-1, keepdim=True)) / temperature
        items_RT[:, t] = _draw(scores_RN.softmax(-1), uniform_RT[:, t].to(C_RTD.device))
    return items_RT.cpu()


def _scores_after(guide: Guide, items_RT: Tensor) -> Tensor:
    """The guide's scores of all items after these prefixes, (R, n)."""
    lengths = torch.full((len(items_RT),), items_RT.shape[1], device=items_RT.device)
    return guide.model.states(items_RT, lengths) @ guide.model.table.T


def _draw(probability_RN: Tensor, uniform_R: Tensor) -> Tensor:
    """One item a row, int64 (R), by inverse transform: the first item whose cumulated probability
    exceeds the uniform number.

    An item of probability zero is never drawn: it does not raise the sum, and a number that rounds
    up to the total gives the item at which the sum first reaches the total.
    """
    sums_RN = probability_RN.cumsum(-1)
    total_R1 = sums_RN[:, -1:].contiguous()
    items_R1 = torch.searchsorted(sums_RN, uniform_R[:, None] * total_R1, right=True)
    return torch.minimum(items_R1, torch.searchsorted(sums_RN, total_R1)).squeeze(-1)
