"""Compiled steps against the same steps as they are, and what is said where none can be compiled.

Compiling takes seconds a function, so the whole path is gone once; cutting a traced function in two
is tested without compiling anything.
"""

from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from td3engine.config import BackboneConfig, LearnerConfig, Mode
from td3engine.errors import CompilerError
from td3engine.inner_loop import traced
from td3engine.inner_loop.adam import LearnerState
from td3engine.inner_loop.gradients import InnerGradient
from td3engine.inner_loop.learner import recommender
from td3engine.inner_loop.traced import TracedTake, cut, demand_compiler
from td3engine.inner_loop.trainer import InnerLoopTrainer
from td3engine.inner_loop.unroll import meta_gradient, train
from td3engine.models.backbones.sasrec import SASRec
from td3engine.summary.soft_sequences import soft_embedding_for
from tests.td3engine.oracles import distance, normal, seeded

USERS, ZETA, ITEMS, WIDTH = 5, 8, 11, 4


def compiler_is_here() -> bool:
    try:
        demand_compiler()
    except CompilerError:
        return False
    return True


@pytest.mark.parametrize(
    ("mode", "recompute", "really"),
    [
        ("shared-items", False, True),
        ("shared-items", False, False),
        ("shared-items", True, False),
        ("from-scratch", False, False),
    ],
)
def test_a_window_is_that_of_plain_steps(
    mode: Mode, recompute: bool, really: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two windows, so that functions meet steps they were not traced with."""
    if not really:
        monkeypatch.setattr("torch._inductor.compile", lambda graph, _: graph)
    elif not compiler_is_here():
        pytest.skip("there is no C++ compiler, or no Python headers")
    monkeypatch.setattr(traced, "demand_compiler", lambda: None)
    backbone = SASRec(BackboneConfig(hidden=WIDTH, inner=5, dropout=0.2), ZETA - 1)
    V = normal(0, ITEMS, WIDTH).float()
    model = recommender(backbone, V, mode)
    soft_embedding = soft_embedding_for(V, USERS * ZETA, fixed=model.scores_are_fixed)
    objective: Literal["last-and-augmented", "all-positions"]
    objective = "last-and-augmented" if recompute else "all-positions"
    config = LearnerConfig(batch=2, objective=objective, augmented=1)
    plain = InnerLoopTrainer(model, config, 20, soft_embedding, ZETA)
    synthetic = soft_embedding.synthetic(normal(1, USERS, 2 * ZETA, WIDTH).float())
    start, outer = LearnerState.fresh(model.initial(seeded(2))), normal(3, model.n_parameters)
    made = TracedTake(plain.take, compiled=True, stacked=False)
    for age in (0, 3):
        steps = plain.steps(age, 3, USERS, seeded(age))
        ends, products = [], []
        for take in (made, plain.take):
            kept: list[InnerGradient] | None = None if recompute else []
            states = train(start, synthetic, steps, take, plain.schedule, kept)
            ends.append(states[-1].parameters)
            args = states, synthetic, steps, take, plain.schedule, outer.float(), kept
            products.append(meta_gradient(*args))
        assert distance(*ends) < 1e-5
        assert products[1].norm() > 0
        assert distance(*products) < 1e-4 * float(products[1].norm())


def test_cut_keeps_what_lies_before_the_direction() -> None:
    """Also what was done in place, and what is an input of its own behind the cut."""

    def joint(direction: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradient = (x * y).add_(1)
        gradient.mul_(x)
        hvp = gradient * direction
        hvp.add_(y)
        return gradient, hvp, x.sum() * direction

    inputs = [normal(nth, 3) for nth in range(3)]
    first, second = cut(make_fx(functionalize(joint))(*inputs), fused=True)
    others = [normal(10 + nth, 3) for nth in range(3)]
    gradient, *kept = first(*others[1:])
    found = [gradient, *second(others[0], *kept)]
    for each, wanted in zip(found, joint(*others), strict=True):
        assert torch.equal(each, wanted)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompilerError, match=r"outer\.compiled.*no-such-compiler"):
        demand_compiler()


def test_another_compiler_than_inductors_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("shutil.which", lambda name: None if name == "g++" else f"/usr/bin/{name}")
    with pytest.raises(CompilerError, match=r"there is no g\+\+"):
        demand_compiler()


def test_no_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: "/usr/bin/g++")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": "/nowhere"})
    with pytest.raises(CompilerError, match=r"/nowhere/Python\.h"):
        demand_compiler()
