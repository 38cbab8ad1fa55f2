"""The ablations that are programs of their own, against what they claim to change."""

from typing import Any

import pytest
import torch

from benchmarks.ablations import FreeQueries
from td3engine.outer_loop.distillation import Distillation
from td3engine.summary.tucker import query
from tests.td3engine import distill_kit as kit
from tests.td3engine.oracles import default_double, distance, leaves


@pytest.mark.parametrize("targets", ["own", "next"])
@pytest.mark.parametrize("mode", ["shared-items", "from-scratch"])
def test_free_queries_start_where_the_factors_do_and_are_trained_alone(
    mode: Any, targets: Any
) -> None:
    """Their gradient is that of the queries, which the factors' is made of by the chain rule."""
    config = kit.config_of(mode, targets=targets)
    with default_double():
        base, free = (kit.make(config, False, kind=kind) for kind in (Distillation, FreeQueries))
        factors = leaves(*base.factors)
        C_UTD = query(*factors)
        assert distance(query(*free.factors), C_UTD.detach()) < 1e-12
        trained = [factor for factor in free.factors if factor.requires_grad]
        assert [factor.shape for factor in trained] == [C_UTD.shape]
        before = trained[0].detach().clone()
        for each in (base, free):
            each.step()
        to_factors = torch.autograd.grad(C_UTD, factors, trained[0].grad)
    for factor, wanted in zip(base.factors, to_factors, strict=True):
        assert distance(factor.grad, wanted) < 1e-9
    assert not torch.equal(trained[0], before)
    wanted_C = trained[0].detach().clone()
    if (
        targets == "own"
    ):  # the two that no gradient would reach are what their positions' others are
        wanted_C[:, kit.ZETA - 1], wanted_C[:, kit.ZETA] = wanted_C[:, -1], wanted_C[:, 0].clone()
    rebuilt = query(*(factor.detach() for factor in free.factors))
    assert distance(rebuilt, wanted_C) < 1e-12
