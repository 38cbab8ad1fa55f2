"""Whatever a process settles with its machine, products stay those of float32."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from td3engine.errors import DeviceError
from td3engine.runtime import torch_setup as processor
from td3engine.runtime.torch_setup import (
    LARGEST_ERROR,
    configure,
    deterministic,
    keep_freed_memory,
    largest_error,
    use_fast_matmul,
)

FILLING: Any = torch.utils.deterministic
SETTINGS: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # not in its stubs


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = SETTINGS.fp32_precision
    SETTINGS.fp32_precision = "none"  # whatever other tests have settled
    yield
    SETTINGS.fp32_precision = before


@pytest.mark.parametrize(
    ("files", "allowed"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "1000 100000\n"}, 1),
        ({"cpu.max": "what is this\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    ],
)
def test_a_control_group_says_how_many_processors(
    files: dict[str, str], allowed: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(processor, "CGROUP", tmp_path)
    assert processor.processors_allowed() == allowed


@pytest.mark.parametrize(("allowed", "before", "after"), [(2, 3, 2), (3, 2, 2), (None, 2, 2)])
def test_no_more_threads_than_processors(
    allowed: int | None, before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "processors_allowed", lambda: allowed)
    was = torch.get_num_threads()
    torch.set_num_threads(before)
    try:
        configure()
        assert torch.get_num_threads() == after
    finally:
        torch.set_num_threads(was)


@pytest.mark.parametrize(
    ("threads", "together", "said"), [(1, 9.0, False), (2, 2.9, False), (2, 3.1, True)]
)
def test_threads_that_wait_for_each_other_are_told_of(
    threads: int, together: float, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By how long small operations take with them and with one; their number stays."""
    was = torch.get_num_threads()
    torch.set_num_threads(threads)
    seconds = {1: 1.0, 2: together}
    monkeypatch.setattr(
        processor, "_seconds_of_small_operations", lambda: seconds[torch.get_num_threads()]
    )
    try:
        why = processor.cpu_contention()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(was)
    assert (why is not None) == said
    assert not said or "2 threads take 3 times as long" in str(why)


def pretend(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name})


def test_products_are_exact() -> None:
    use_fast_matmul()
    assert largest_error() <= LARGEST_ERROR


def test_rounding_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    rounded = x.bfloat16().double() @ y.bfloat16().double()
    error = float((rounded - x.double() @ y.double()).abs().max())
    assert error > 10 * LARGEST_ERROR
    pretend(monkeypatch, "AMD EPYC")
    monkeypatch.setattr(processor, "largest_error", lambda: error)
    before = SETTINGS.fp32_precision
    assert not use_fast_matmul()
    assert SETTINGS.fp32_precision == before


@pytest.mark.parametrize(("name", "asked"), [("AMD EPYC", True), ("Intel(R) Xeon(R)", False)])
def test_only_where_the_usual_library_is_slow(
    name: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, name)
    monkeypatch.setattr(processor, "largest_error", lambda: 0.0)
    assert use_fast_matmul() == asked
    assert (SETTINGS.fp32_precision == "bf16") == asked


def test_freed_memory_is_kept_with_glibc() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def test_a_gpu_adds_in_a_fixed_order_and_a_cpu_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is as before in the end
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    configure(torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(FILLING, "fill_uninitialized_memory", True)
    with deterministic():  # where no order is settled there is none to keep to
        assert not torch.are_deterministic_algorithms_enabled()
    try:
        configure(torch.device("cuda"))
        assert not FILLING.fill_uninitialized_memory
        with deterministic():
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_device_of_another_kind_is_refused() -> None:
    with pytest.raises(DeviceError, match="one of auto, cpu, cuda, not 'tpu'"):
        processor.pick_device("tpu")  # type: ignore[arg-type]
