"""An inner step as two functions of tensors: its gradient, and its Hessian product.

A step of a small model is some hundred kernels of a few microseconds, and as long again to start
them. Both functions are traced as one and cut where the direction comes in; what lies before the
cut and is needed behind it is kept between them, as `AnalyticGradient` keeps it. Then there are two
ways to start less:

- compiled: `torch.compile` fuses each of the two. It takes a minute or two the first time on a
  machine, and seconds when its cache has them, so it pays where outer steps are many. It needs a
  C++ compiler.
- stacked: K learners take a step in the kernels of one (`side_by_side`).
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tag, Tensor
from torch import _inductor as inductor
from torch._ops import OpOverload
from torch.func import functionalize
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from td3engine.errors import CompilerError
from td3engine.inner_loop.gradients import GradFn, InnerGradient
from td3engine.inner_loop.side_by_side import side_by_side
from td3engine.models.recommender import StepRandomness

Function = Callable[..., tuple[Tensor, ...]]


class TracedTake:
    """`unroll.GradFn` of a recipe whose model and reader stay the same, traced.

    Args:
        take: the recipe's own.
        compiled: whether to compile what was traced.
        stacked: whether a step is that of K learners: every tensor of it has one more dimension
            in front, of K.

    Raises:
        CompilerError: there is no C++ compiler, or Python's headers are missing, and `compiled`.
    """

    def __init__(self, take: GradFn[StepRandomness], *, compiled: bool, stacked: bool) -> None:
        if compiled:
            demand_compiler()
        self.compiled, self.stacked = compiled, stacked
        self._take = take
        self._made: dict[object, tuple[Function, Function]] = {}

    def __call__(
        self, theta: Tensor, batch: Tensor, randomness: StepRandomness, _second: bool
    ) -> InnerGradient:
        targets, dropout = randomness.targets, randomness.dropout
        step = [theta, batch, targets.rows, targets.at, *([] if dropout is None else [dropout])]
        kind = (
            batch.shape,
            targets.at.shape,
            targets.per_row,
            targets.all_positions,
            dropout is None,
        )
        if kind not in self._made:
            self._made[kind] = self._make(randomness, step)
        return _TracedGradient(*self._made[kind], step)

    @torch.no_grad()
    def _make(self, like: StepRandomness, step: list[Tensor]) -> tuple[Function, Function]:
        """What depends on shapes alone is settled by tracing, once."""

        def joint(direction_P: Tensor, theta: Tensor, batch: Tensor, *drawn: Tensor) -> Any:
            rows, at, *dropout = drawn
            targets = replace(like.targets, rows=rows, at=at)
            taken = self._take(
                theta, batch, StepRandomness(targets, dropout[0] if dropout else None), True
            )
            return taken.gradient, *taken.hvp(direction_P)

        inputs = [torch.ones_like(step[0]), *step]
        one = [each[0] for each in inputs] if self.stacked else inputs
        # Without operations in place, so that what a node depends on is what it reads.
        traced = make_fx(functionalize(joint))(*one)
        if self.stacked:
            traced = make_fx(side_by_side(traced))(*inputs)
        first, second = cut(traced, fused=self.compiled)
        if not self.compiled:
            return first, second
        return _Compiled(first), _Compiled(second)


class _Compiled:
    """A graph that inductor compiles for the first inputs it is given, and for all like them.

    As `torch.compile` does it, but for what that looks at in every call to find out whether the
    inputs are still alike: a seventh of an outer step. They are (`TracedTake.__call__`), and
    compiled code raises an AssertionError where sizes or strides are not its own.
    """

    def __init__(self, graph: GraphModule) -> None:
        self._graph = graph
        self._compiled: Function | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self._compiled is None:
            self._compiled = inductor.compile(self._graph, list(inputs))
        return self._compiled(*inputs)


class _TracedGradient:
    def __init__(self, first: Function, second: Function, step: list[Tensor]) -> None:
        self.gradient, *self._kept = first(*step)
        self._second = second

    def hvp(self, direction_P: Tensor) -> tuple[Tensor, Tensor]:
        to_parameters, to_batch = self._second(direction_P, *self._kept)
        return to_parameters, to_batch


def cut(joint: GraphModule, *, fused: bool) -> tuple[GraphModule, GraphModule]:
    """Cut f(direction, *step) -> (gradient, *products) where the direction comes in.

    Args:
        joint: the function, without operations in place.
        fused: elementwise operations cost nothing by themselves, only what they read and write.

    Returns:
        A function of the step that gives the gradient and what else is kept, and one of the
        direction and the latter, in this order, that gives the products.
    """
    nodes = [*joint.graph.nodes]
    direction, *step = [node for node in nodes if node.op == "placeholder"]
    (output,) = [node for node in nodes if node.op == "output"]
    gradient, *products = output.args[0]
    moved = {direction}
    for node in nodes:
        if node is not output and any(each in moved for each in node.all_input_nodes):
            moved.add(node)
    # What the products need, from the end: a node behind the cut, or one that is computed again
    # there because, fused, it costs less than to store it and to read it; or else it is kept.
    behind, kept, wanted = set[Node](), list[Node](), set(products)
    for node in reversed(nodes):
        if node not in wanted or node is direction:
            continue
        if node in moved or (fused and _is_cheap(node)):
            behind.add(node)
            wanted.update(node.all_input_nodes)
        else:
            kept.append(node)
    before = [
        node for node in nodes if node not in moved and node.op not in ("placeholder", "output")
    ]
    return (
        _function(joint, step, before, [gradient, *kept]),
        _function(joint, [direction, *kept], [node for node in nodes if node in behind], products),
    )


def _is_cheap(node: Node) -> bool:
    """Elementwise, another view, or a constant: fused into what reads it."""
    if not isinstance(node.target, OpOverload):
        return node.op == "get_attr"
    return node.target.is_view or Tag.pointwise in node.target.tags


def _function(
    joint: GraphModule, inputs: list[Node], body: list[Node], outputs: list[Node]
) -> GraphModule:
    """The part of `joint` that computes `outputs` from `inputs` by `body`."""
    graph, copied = Graph(), dict[Node, Node]()
    for node in inputs:
        copied[node] = graph.placeholder(node.name)
    for node in body:
        copied[node] = graph.node_copy(node, copied.__getitem__)
    graph.output(tuple(copied[node] for node in outputs))
    graph.eliminate_dead_code()
    return GraphModule(joint, graph)


def demand_compiler() -> None:
    """Say what is missing where functions cannot be compiled.

    Raises:
        CompilerError: there is no C++ compiler, or Python's headers are missing.
    """
    # The one that inductor takes.
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise CompilerError(f"outer.compiled needs a C++ compiler, and there is no {compiler}")
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not headers.exists():
        raise CompilerError(f"outer.compiled needs Python's headers, and there is no {headers}")
