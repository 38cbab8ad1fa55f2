"""Processes that distil together against one that does the same work alone.

Sums over processes are taken in another order, so results differ by rounding. In float64 that is
below 1e-9 after a few outer steps. In float32 it begins at 1e-7 an operation, and Adam, which
divides a gradient by its own size, makes a step's relative error one of the learned numbers: 1e-4
of their norm is a thousand times that beginning, and far below what one outer step changes.
"""

import os
import re
import signal
import subprocess
import sys
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch

from td3engine.config import Mode
from td3engine.config.presets import merge
from td3engine.contract import CHECKPOINT_FILE
from td3engine.data.reading import read_log
from td3engine.data.types import Interactions
from td3engine.errors import DivergedError, Interrupted, PeerLostError, RanksError
from td3engine.events import Phase
from td3engine.outer_loop.distillation import Distillation
from td3engine.pipeline.run import Control, Run
from td3engine.runtime.distributed import ProcessGroup, join
from td3engine.summary.bundle import load_bundle
from tests.td3engine.distill_kit import WIDTH, config_of, make
from tests.td3engine.oracles import default_double, distance
from tests.td3engine.ranks import CPU, together
from tests.td3engine.small import (
    PAPER,
    SMALL,
    paper_config,
    set_options,
    small_config,
    write_small_log,
)

SINGLE, DOUBLE = 1e-4, 1e-9
LEARNERS = 3  # of two processes one trains two of them
# Factors that nothing rounds: what processes do differently shows.
CONFIG = paper_config(outer={"learners": LEARNERS})


# --- what processes say to each other -----------------------------------------------------------


def talk(group: ProcessGroup) -> None:
    rank = group.rank
    one, two = torch.full((2, 3), 1.0 + rank), torch.tensor([5.0 * rank])
    group.all_reduce([one, two])
    assert torch.equal(one, torch.full((2, 3), 3.0))
    assert torch.equal(two, torch.tensor([5.0]))
    assert group.any(rank == 0, rank == 1, False) == (True, True, False)
    assert [list(group.share(count)) for count in (1, 4)] == [[0][rank:], [rank, rank + 2]]
    tree = {"rank": rank, "tensors": [torch.arange(3) + rank]}
    is_main = group.broadcast(tree, CPU)
    assert is_main["rank"] == 0
    assert torch.equal(is_main["tensors"][0], torch.arange(3))
    ranks = [each["rank"] for each in group.gather(tree, CPU)]
    assert ranks == ([0, 1] if group.is_main else [1])
    work = iter([0.5, 0.25]) if group.is_main else iter([7.0])
    assert list(group.iterate_on_main(work)) == [0.5, 0.25]
    assert list(work) == ([] if group.is_main else [7.0])  # only the leader works
    group.close()


def test_what_processes_say_to_each_other() -> None:
    assert together(talk) == [0, 0]


def test_a_process_by_itself_says_the_same_to_itself() -> None:
    group = join(CPU)
    one = torch.ones(2)
    group.all_reduce([one])
    assert torch.equal(one, torch.ones(2))
    assert group.is_main
    assert group.any(True, False) == (True, False)
    assert list(group.share(3)) == [0, 1, 2]
    assert group.broadcast("tree", CPU) == "tree"
    assert group.gather("tree", CPU) == ["tree"]
    assert list(group.iterate_on_main(iter([0.5]))) == [0.5]
    group.close()


def one_ends(group: ProcessGroup, ends: int) -> None:
    if group.rank == ends:
        group.any(False)
        os._exit(7)
    with pytest.raises(PeerLostError, match=f"rank {group.rank} of 2"):
        for _ in range(2):
            group.any(False)


@pytest.mark.parametrize("ends", [0, 1])
def test_the_end_of_one_process_is_an_error_of_the_others(ends: int) -> None:
    codes = together(one_ends, ends)
    assert codes[ends] == 7
    assert codes[1 - ends] == 0


def one_hangs(group: ProcessGroup) -> None:
    others = [each["process"] for each in group.gather({"process": os.getpid()}, CPU)]
    if group.is_main:
        with pytest.raises(PeerLostError):
            group.any(False)
        os.kill(others[1], signal.SIGKILL)
    else:
        os.kill(os.getpid(), signal.SIGSTOP)


def test_a_process_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    assert together(one_hangs, patience=3) == [0, -signal.SIGKILL]


# --- outer steps --------------------------------------------------------------------------------


def take_steps(group: ProcessGroup, mode: Mode, file: Path) -> None:
    """Five outer steps in float64; the leader keeps its factors and the state of all."""
    with default_double():
        distillation = steps_of(mode, group)
        for _ in islice(distillation.steps(), 5):
            pass
        state = distillation.state()
        if group.is_main:
            torch.save(state, file)


def steps_of(mode: Mode, group: ProcessGroup) -> Distillation:
    over = {"normalise": True, "validate_every": 2, "learners": LEARNERS, "feature_weight": 0.7}
    return make(config_of(mode, **over), False, group)


@pytest.mark.parametrize("mode", ["shared-items", "from-scratch"])
def test_two_processes_take_the_steps_of_one(mode: Mode, tmp_path: Path) -> None:
    """Factors, optimizer, learners of all pools, validation; and one goes on where two stopped."""
    assert together(take_steps, mode, tmp_path / "two") == [0, 0]
    take_steps(ProcessGroup(), mode, tmp_path / "one")
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two"))
    assert set(two["pools"]) == set(range(LEARNERS))
    for name in ("done", "mode"):
        assert one[name] == two[name]
    for state in (one, two):
        state["pools"] = [without_key_bias(state["pools"][nth]) for nth in range(LEARNERS)]
    mine, theirs = numbers(one), numbers(two)
    assert set(mine) == set(theirs)
    assert len(mine) > LEARNERS * 2 * 4
    apart = {path: float((mine[path] - theirs[path]).norm()) for path in mine}
    assert max(apart.values()) < DOUBLE, apart
    with default_double():
        ends = []
        for state in (one, two):
            distillation = steps_of(mode, ProcessGroup())
            before = [factor.detach().clone() for factor in distillation.factors]
            distillation.restore(state)
            next(distillation.steps())
            ends.append(distillation.factors)
        for mine, theirs, start in zip(*ends, before, strict=True):
            assert distance(mine, theirs) < DOUBLE
            assert distance(mine, start) > 1e-2


def without_key_bias(pool: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The gradient of the attention's key bias is nothing but rounding, which Adam scales up."""
    backbone = make(config_of("shared-items"), False).backbone
    named = backbone.named(torch.arange(backbone.n_parameters))
    key_bias = named["0_qkv_bias"][WIDTH : 2 * WIDTH]
    return [
        {
            name: value.index_fill(0, key_bias, 0.0) if isinstance(value, torch.Tensor) else value
            for name, value in kept.items()
        }
        for kept in pool
    ]


def numbers(tree: Any, path: str = "") -> dict[str, torch.Tensor]:
    """All numbers of a state, by their path."""
    if isinstance(tree, torch.Tensor | int | float):
        return {path: torch.as_tensor(tree, dtype=torch.float64)}
    if isinstance(tree, list | tuple):
        tree = dict(enumerate(tree))
    found = {}
    for key, value in tree.items() if isinstance(tree, dict) else ():
        found.update(numbers(value, f"{path}/{key}"))
    return found


# --- whole runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_log(tmp_path_factory.mktemp("log") / "log.csv")


def go(group: ProcessGroup, log: Interactions, folder: Path, **control: Any) -> None:
    control.setdefault("listener", lambda _: None)
    run = Run(log, "f" * 64, CONFIG, folder, Control(**control), group)
    if group.is_main:
        run.run()
    else:
        run.assist()


def whole(group: ProcessGroup, log: Path, folder: Path) -> None:
    go(group, read_log(log), folder)


@pytest.fixture(scope="module")
def by_two(log_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "out"
    assert together(whole, log_path, folder) == [0, 0]
    return folder


@pytest.fixture(scope="module")
def by_one(log_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "out"
    go(ProcessGroup(), read_log(log_path), folder)
    return folder


def assert_same_to_rounding(one: Path, other: Path) -> None:
    mine, theirs = load_bundle(one).factors, load_bundle(other).factors
    assert torch.equal(mine.V, theirs.V)  # the leader's teacher
    assert len(mine.learned) == 4
    for factor, their_factor in zip(mine.learned, theirs.learned, strict=True):
        assert distance(factor, their_factor) < SINGLE


def test_two_processes_make_the_summary_of_one(by_one: Path, by_two: Path, tmp_path: Path) -> None:
    assert_same_to_rounding(by_one, by_two)


def test_torchrun_makes_the_summary_of_one(by_one: Path, log_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "td3engine.cli", "distill", str(log_path), "--out", str(out)]
    command += [*set_options(merge(SMALL, PAPER)), "--set", f"outer.learners={LEARNERS}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^summary:", done.stdout, re.M)) == 1  # one of them speaks
    assert_same_to_rounding(by_one, out)


def killed(group: ProcessGroup, log: Path, folder: Path, who: int, at: int) -> None:
    """Checkpoints after each step; one process is killed at a step of distilling."""
    asked = count(1)

    def stop() -> bool:
        # Asked after each of four epochs and each outer step.
        if group.rank == who and next(asked) == 4 + at:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    with pytest.raises(PeerLostError):
        go(group, read_log(log), folder, checkpoint_seconds=0, stop=stop)


@pytest.mark.parametrize(("who", "at"), [(0, 3), (1, 5)])
def test_a_killed_run_goes_on(
    log_path: Path, by_one: Path, by_two: Path, tmp_path: Path, who: int, at: int
) -> None:
    """With as many processes to the same bytes, with another number to the same summary."""
    codes = together(killed, log_path, tmp_path, who, at)
    assert codes[who] == -signal.SIGKILL
    assert codes[1 - who] == 0
    checkpoint = (tmp_path / CHECKPOINT_FILE).read_bytes()
    done = torch.load(tmp_path / CHECKPOINT_FILE, weights_only=True)["distillation"]["done"]
    assert done == at - 1
    assert together(whole, log_path, tmp_path) == [0, 0]
    name = "summary.safetensors"
    assert (tmp_path / name).read_bytes() == (by_two / name).read_bytes()
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / CHECKPOINT_FILE).write_bytes(checkpoint)
    go(ProcessGroup(), read_log(log_path), alone)
    assert_same_to_rounding(alone, by_one)


def stopped(group: ProcessGroup, log: Path, folder: Path, looks: int) -> None:
    """The second process is asked to stop; both do, after a checkpoint of the first."""
    asked = count(1)
    seen: list[tuple[Phase, int]] = []

    def stop() -> bool:
        return group.rank == 1 and next(asked) == looks

    with pytest.raises(Interrupted):
        go(
            group,
            read_log(log),
            folder,
            stop=stop,
            on_checkpoint=lambda _, phase, step: seen.append((phase, step)),
        )
    expected = ("pretraining", looks) if looks <= 4 else ("distilling", looks - 4)
    assert seen == ([expected] if group.is_main else [])


@pytest.mark.parametrize("looks", [2, 6])
def test_all_stop_where_one_is_asked_to(
    log_path: Path, by_two: Path, tmp_path: Path, looks: int
) -> None:
    assert together(stopped, log_path, tmp_path, looks) == [0, 0]
    assert together(whole, log_path, tmp_path) == [0, 0]
    name = "summary.safetensors"
    assert (tmp_path / name).read_bytes() == (by_two / name).read_bytes()


def unlike(group: ProcessGroup, log: Path, folder: Path) -> None:
    """Two seeds; then more processes than learners; then settings that only the leader tries."""
    listen = Control(listener=lambda _: None)
    seeds = small_config(seed=group.rank, outer={"learners": 2})
    for config, said in ((seeds, "different"), (small_config(), "--set outer.learners=2")):
        with pytest.raises(RanksError, match=said):
            Run(read_log(log), "f" * 64, config, folder, listen, group).run()
    wild = small_config(teacher={"lr": 1e30}, outer={"learners": 2})
    run = Run(read_log(log), "f" * 64, wild, folder, listen, group)
    if group.is_main:
        with pytest.raises(DivergedError):
            run.run()
    else:
        with pytest.raises(PeerLostError):
            run.assist()


def test_processes_that_cannot_work_together_end(log_path: Path, tmp_path: Path) -> None:
    assert together(unlike, log_path, tmp_path) == [0, 0]
