"""TD3 as a textbook has it: docs/method.md term by term, for `benchmarks.speed` to compare with.

Straightforward and competent PyTorch, and none of the engine's ideas: the probabilities S are
computed in full at every inner step, a learner is trained from scratch up to the window at every
outer step, the window lies on autograd's tape, the augmentation is a second pass through the
encoder, and a real row has one target. It computes the same meta-gradient (a test compares the
two in float64), so what differs is time and memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from td3engine.config import BackboneConfig, DistillConfig
from td3engine.outer_loop.distillation import StageHook

FIRST_AUGMENTED = 5
BETA1, EPSILON = 0.9, 1e-8
INITIAL_STD = 0.02


class Layer(nn.Module):
    """Causal self-attention and a feed-forward part, each with dropout, residual and norm."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        d = config.hidden
        self.heads = config.heads
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, config.inner), nn.Linear(config.inner, d)
        self.attention_norm, self.output_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLD: Tensor, future_LL: Tensor) -> Tensor:
        rows, length, d = x_BLD.shape
        q, k, v = self.qkv(x_BLD).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2) / (d // self.heads) ** 0.5).masked_fill(
            future_LL, -torch.inf
        )
        mixed = (self.dropout(scores.softmax(-1)) @ v).transpose(1, 2).reshape(x_BLD.shape)
        x = self.attention_norm(x_BLD + self.dropout(self.out(mixed)))
        inner = self.down(functional.gelu(self.up(x)))
        hidden: Tensor = self.output_norm(x + self.dropout(inner))
        return hidden


class SASRec(nn.Module):
    """Embedded events (B, L, d) to hidden states (B, L, d); L <= history."""

    def __init__(self, config: BackboneConfig, history: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(history, config.hidden))
        self.input_norm = nn.LayerNorm(config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, events_BLD: Tensor) -> Tensor:
        length = events_BLD.shape[1]
        x: Tensor = self.dropout(self.input_norm(events_BLD + self.position[:length]))
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        for layer in self.layers:
            x = layer(x, future)
        return x

    @torch.no_grad()
    def reset(self) -> None:
        """Fresh weights: N(0, 0.02^2), biases zero, norms one."""
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(std=INITIAL_STD)


Named = dict[str, Tensor]


@dataclass(frozen=True)
class Learner:
    """A learner in training: parameters and Adam's moments by name, steps taken."""

    parameters: Named
    first: Named
    second: Named
    age: int

    @classmethod
    def fresh(cls, parameters: Named) -> "Learner":
        start = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
        zeros = {name: torch.zeros_like(p) for name, p in parameters.items()}
        return cls(start, zeros, zeros, 0)

    def detached(self) -> "Learner":
        parameters = {name: p.detach().requires_grad_() for name, p in self.parameters.items()}
        return Learner(parameters, self.first, self.second, self.age)


@dataclass(frozen=True)
class RealRows:
    """Prefix rows: items right-padded (B, L), their lengths (B), the next item of each (B)."""

    items: Tensor
    lengths: Tensor
    targets: Tensor


class TextbookTD3:
    """The outer loop, for `shared-items` learners.

    Args:
        config: the engine's settings, of which all that describe the paper's method are obeyed.
        factors: U (mu, d1), T (zeta, d2), G (d1, d2, d) to start from.
        V_ND: the item table, frozen.
        learner: the model that learners are; its own weights are only where draws start.
        teacher: the model whose hidden states a learner's are aligned with.
        starts: how many steps a learner takes before its window, an outer step each, in turn.

    Raises:
        ValueError: settings that the paper does not have.
    """

    def __init__(
        self,
        config: DistillConfig,
        factors: Sequence[Tensor],
        V_ND: Tensor,
        learner: SASRec,
        teacher: SASRec,
        starts: NDArray[np.int64],
    ) -> None:
        if config.summary.targets != "next" or config.learner.objective != "last-and-augmented":
            raise ValueError("the textbook's targets are the last position and augmented ones")
        self.config, self.V_ND, self.starts = config, V_ND, starts
        self.factors = [factor.detach().clone().requires_grad_() for factor in factors]
        self.learner, self.teacher = learner, teacher.eval()
        outer = config.outer
        self.optimizer = torch.optim.Adam(
            self.factors, lr=outer.lr, weight_decay=outer.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, outer.steps)
        self.done = 0

    def step(self, real: RealRows, on_stage: StageHook) -> None:
        """One outer step on these real rows."""
        self.learner.reset()
        learner = Learner.fresh(dict(self.learner.named_parameters()))
        self.learner.train()
        for _ in range(int(self.starts[self.done % len(self.starts)])):
            learner = self._inner_step(learner, differentiable=False).detached()
        on_stage("warm-up")
        for _ in range(self.config.outer.window):
            learner = self._inner_step(learner, differentiable=True)
        on_stage("window")
        self.learner.eval()
        end = list(learner.parameters.values())
        to_end = torch.autograd.grad(self._real_loss(learner.parameters, real), end)
        on_stage("real batch")
        gradients = torch.autograd.grad(end, self.factors, to_end)
        on_stage("reverse")
        for factor, gradient in zip(self.factors, gradients, strict=True):
            factor.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.factors, self.config.outer.clip)
        self.optimizer.step()
        self.schedule.step()
        self.done += 1
        on_stage("rest")

    def _inner_step(self, learner: Learner, *, differentiable: bool) -> Learner:
        users, batch = len(self.factors[0]), self.config.learner.batch
        first = learner.age * batch
        rows = torch.arange(first, first + batch, device=self.V_ND.device) % users
        with torch.set_grad_enabled(differentiable):
            S_BTN = self._probabilities()[rows]
        loss = self._inner_loss(learner.parameters, S_BTN)
        given = list(learner.parameters.values())
        gradients = torch.autograd.grad(loss, given, create_graph=differentiable)
        with torch.set_grad_enabled(differentiable):
            return self._adam(learner, gradients)

    def _probabilities(self) -> Tensor:
        """S, (mu, zeta, n), in full."""
        C_UTD = torch.einsum("ua,tb,abd->utd", *self.factors)
        return (C_UTD @ self.V_ND.T).softmax(-1)

    def _inner_loss(self, parameters: Named, S_BTN: Tensor) -> Tensor:
        X_BTD = S_BTN @ self.V_ND
        rows, length, _ = X_BTD.shape
        all_rows = torch.arange(rows, device=X_BTD.device)
        last_BTD = functional_call(self.learner, parameters, (X_BTD[:, :-1],))
        losses = [self._soft_cross_entropy(last_BTD[:, -1], S_BTN[:, -1])]
        for _ in range(self.config.learner.augmented):
            at = torch.randint(min(FIRST_AUGMENTED, length - 2), length - 1, (rows,))
            prefix_BTD = X_BTD[:, : int(at.max())]
            at = at.to(X_BTD.device)
            hidden_BTD = functional_call(self.learner, parameters, (prefix_BTD,))
            hidden_BD = hidden_BTD[all_rows, at - 1]
            losses.append(self._soft_cross_entropy(hidden_BD, S_BTN[all_rows, at]))
        return torch.stack(losses).mean()

    def _soft_cross_entropy(self, hidden_BD: Tensor, target_BN: Tensor) -> Tensor:
        return functional.cross_entropy(hidden_BD @ self.V_ND.T, target_BN)

    def _adam(self, learner: Learner, gradients: tuple[Tensor, ...]) -> Learner:
        settings, age = self.config.learner, learner.age + 1
        beta2 = settings.beta2
        parameters, firsts, seconds = {}, {}, {}
        for (name, p), gradient in zip(learner.parameters.items(), gradients, strict=True):
            g = gradient + settings.weight_decay * p
            first = BETA1 * learner.first[name] + (1 - BETA1) * g
            second = beta2 * learner.second[name] + (1 - beta2) * g * g
            # sqrt has no derivative at zero, where a gradient has never been anything else.
            moved = second > 0
            root = torch.where(moved, second, 1.0).div(1 - beta2**age).sqrt()
            root = torch.where(moved, root, 0.0)
            parameters[name] = p - self._rate(learner.age) / (1 - BETA1**age) * first / (
                root + EPSILON
            )
            firsts[name], seconds[name] = first, second
        return Learner(parameters, firsts, seconds, age)

    def _rate(self, age: int) -> float:
        settings = self.config.learner
        left = 1 - age / settings.steps if settings.schedule == "linear" else 1.0
        return settings.lr * left

    def _real_loss(self, parameters: Named, real: RealRows) -> Tensor:
        """Cross-entropy of the next items, and how far states are from the teacher's."""
        events_BLD = self.V_ND[real.items]
        last = torch.arange(len(real.items), device=events_BLD.device), real.lengths - 1
        hidden_BD = functional_call(self.learner, parameters, (events_BLD,))[last]
        with torch.no_grad():
            features_BD = self.teacher(events_BLD)[last]
        loss = functional.cross_entropy(hidden_BD @ self.V_ND.T, real.targets)
        return loss + self.config.outer.feature_weight * functional.mse_loss(hidden_BD, features_BD)
