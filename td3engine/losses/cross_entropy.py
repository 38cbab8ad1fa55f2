"""Cross-entropies of hidden states against expected rows of the scoring table (identity I-2)."""

from torch import Tensor

from td3engine.losses.softmax import log_sum_exp, mean_log_sum_exp


def cross_entropy(
    hidden_KF: Tensor, expected_KF: Tensor, table_NF: Tensor, log_weight_N: Tensor | None = None
) -> Tensor:
    """KL(target || softmax(h F^T)) less the target's entropy, per row (K) (identity I-2).

    Args:
        hidden_KF: hidden states h, (K, f).
        expected_KF: the target's expected row S_t F, (K, f); for a real item, its own row of F.
        table_NF: the scoring table F, (n, f).
        log_weight_N: see `Recommender.log_weight`.
    """
    return log_sum_exp(hidden_KF, table_NF, log_weight_N) - (hidden_KF * expected_KF).sum(-1)


def mean_cross_entropy(hidden_KF: Tensor, targets_KF: Tensor, table_NF: Tensor) -> Tensor:
    """The mean of `cross_entropy` over real targets, given by their rows of F; once differentiable,
    and several times faster where rows are many."""
    return mean_log_sum_exp(hidden_KF, table_NF) - mean_score(hidden_KF, targets_KF)


def mean_score(hidden_KF: Tensor, targets_KF: Tensor, weight_K1: Tensor | None = None) -> Tensor:
    """The mean over rows of h . F_target; weights are those of `mean_log_sum_exp`."""
    scores_KF = hidden_KF * targets_KF
    if weight_K1 is None:
        return scores_KF.sum() / max(1, len(hidden_KF))
    return (scores_KF * weight_K1).sum()
