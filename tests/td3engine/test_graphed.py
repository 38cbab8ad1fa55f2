"""Recorded functions: their buffers everywhere, the recording itself where there is a GPU."""

import pytest
import torch
from torch import Tensor

from td3engine.inner_loop.graphed import CudaGraph
from tests.td3engine.devices import CPU, DEVICES
from tests.td3engine.oracles import normal


def both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x + y, x * y


@pytest.mark.parametrize("device", DEVICES)
def test_each_call_is_of_its_own_inputs(device: torch.device) -> None:
    graphed = CudaGraph(both, device)
    for nth in range(3):
        inputs = [normal(10 * nth + which, 4).to(device) for which in range(2)]
        for found, wanted in zip(graphed(*inputs), both(*inputs), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("device", DEVICES)
def test_inputs_are_copied_and_outputs_overwritten(device: torch.device) -> None:
    seen = list[int]()

    def double(x: Tensor) -> tuple[Tensor]:
        seen.append(x.data_ptr())
        return (2 * x,)

    graphed = CudaGraph(double, device)
    given = torch.ones(3, device=device)
    (first,) = graphed(given)
    (second,) = graphed(given + 1)
    assert first is second
    assert second.tolist() == [4, 4, 4]
    assert given.tolist() == [1, 1, 1]
    assert len(set(seen)) == 1
    assert seen[0] != given.data_ptr()


def test_other_shapes_and_types_are_refused() -> None:
    graphed = CudaGraph(both, CPU)
    graphed(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"recorded with .*3.*called with .*1"):
        graphed(torch.ones(3), torch.ones(1))
    with pytest.raises(ValueError, match=r"recorded with .*float.*called with .*int64"):
        graphed(torch.ones(3), torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="zip"):
        graphed(torch.ones(3))


@pytest.mark.parametrize("device", DEVICES)
def test_one_function_goes_on_from_what_another_has_left(device: torch.device) -> None:
    """As the way back does from the window: what it keeps is no output, and is made anew."""
    left = list[Tensor]()

    def forward(x: Tensor) -> tuple[Tensor]:
        left[:] = [x.exp(), x.square()]
        return (x.sum(),)

    def back(y: Tensor) -> tuple[Tensor]:
        return (left[0] * y + left[1],)

    pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
    one, two = CudaGraph(forward, device, pool), CudaGraph(back, device, pool)
    for nth in range(3):
        x, y = normal(nth, 4).to(device), normal(10 + nth, 4).to(device)
        assert torch.equal(one(x)[0], x.sum())
        assert torch.equal(two(y)[0], x.exp() * y + x.square())
