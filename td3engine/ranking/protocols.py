"""The questions that each protocol asks of a holdout set (method, section 1).

- `all` asks about every case and ranks the target among all items.
- `unseen` asks where the target is new to its user, and ranks it among the items that the user has
  not met before.
- `sampled-100` asks where `unseen` does and the user leaves at least 100 items outside its whole
  history. It ranks the target among 100 uniform ones of them.

`sampled-100` is the paper's protocol and is known to be biased.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from td3engine.ranking.holdout import HoldoutSet

Protocol = Literal["all", "unseen", "sampled-100"]
PROTOCOLS: tuple[Protocol, ...] = ("all", "unseen", "sampled-100")
NEGATIVES = 100


def asked(holdout: HoldoutSet, protocol: Protocol) -> Tensor:
    """Whether the protocol has a question about each case, bool (Q)."""
    if protocol == "all":
        return torch.ones(len(holdout.targets), dtype=torch.bool)
    if protocol == "unseen":
        return holdout.new_target
    return holdout.new_target & (never_met(holdout) >= NEGATIVES)


def never_met(holdout: HoldoutSet) -> Tensor:
    """How many items are outside the user's whole history, int64 (Q)."""
    pairs = torch.unique(holdout.user_rows * holdout.n_items + holdout.user_items)
    met = torch.bincount(pairs // holdout.n_items, minlength=len(holdout.targets))
    return holdout.n_items - met


def available_protocols(holdout: HoldoutSet) -> tuple[Protocol, ...]:
    """The protocols that have at least one question about the set."""
    return tuple(each for each in PROTOCOLS if asked(holdout, each).any())


def protocol_notes(holdout: HoldoutSet) -> list[str]:
    """Why a protocol is absent, or leaves out users with long histories; for people."""
    new = int(asked(holdout, "unseen").sum())
    if not new:
        return [
            "every test target is an item that its user met before: there are no figures under "
            "`unseen` and `sampled-100`"
        ]
    sampled = int(asked(holdout, "sampled-100").sum())
    if not sampled:
        return [f"too few items for {NEGATIVES} negatives a user: no `sampled-100` figures"]
    if sampled < new:
        return [
            f"`sampled-100` leaves out {new - sampled:,} of {new:,} questions, whose users leave "
            f"fewer than {NEGATIVES} items as negatives"
        ]
    return []


def sample_negatives(holdout: HoldoutSet, seed: int) -> Tensor:
    """100 distinct uniform items a case, none from the user's whole history, int64 (Q, 100).

    A case that `sampled-100` does not ask about has zeros.
    """
    rng = np.random.default_rng(seed)
    negatives = np.zeros((len(holdout.targets), NEGATIVES), dtype=np.int64)
    bounds = holdout.user_offsets.tolist()
    for row in torch.nonzero(asked(holdout, "sampled-100"))[:, 0].tolist():
        history = np.unique(holdout.user_items[bounds[row] : bounds[row + 1]].numpy())
        # Positions among the unseen items, shifted past the history's items below them.
        position = rng.choice(holdout.n_items - len(history), NEGATIVES, replace=False)
        gaps = history - np.arange(len(history))
        negatives[row] = position + np.searchsorted(gaps, position, side="right")
    return torch.from_numpy(negatives)
