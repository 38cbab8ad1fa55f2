"""Whole runs: same seed same bytes, stop and resume at any step, what a bundle refuses."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from td3engine.config import BackboneConfig, DistillConfig
from td3engine.config.presets import merge
from td3engine.config.retired import retired_note
from td3engine.contract import CHECKPOINT_FILE, FACTORS_FILE, SUMMARY_FILES
from td3engine.data.reading import read_log
from td3engine.data.types import Interactions, LogError
from td3engine.errors import (
    BundleError,
    CheckpointMismatchError,
    DeviceError,
    DivergedError,
    Interrupted,
)
from td3engine.evaluation.baselines import summary_rows
from td3engine.evaluation.labelled import labelled_rows
from td3engine.evaluation.table import Row
from td3engine.events import Event, Note, Phase, PhaseStarted, Progress, throttled
from td3engine.models.backbone import Backbone
from td3engine.models.registry import build_backbone
from td3engine.outer_loop.distillation import Distillation
from td3engine.pipeline import run as run_module
from td3engine.pipeline.run import RESULT_SEEDS, Control, Outcome, Run
from td3engine.summary.bundle import load_bundle
from td3engine.summary.labelled import LabelledSummary
from td3engine.summary.packing import pack
from td3engine.summary.tucker import TuckerSummary
from td3engine.teacher import network as network_module
from tests.td3engine.small import (
    LEARNER_ROWS,
    LOG_ROWS,
    PAPER,
    SOFT_LEARNER_ROWS,
    as_written,
    learner_rows,
    paper_config,
    small_config,
    write_small_log,
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Interactions:
    return read_log(write_small_log(tmp_path_factory.mktemp("log") / "log.csv"))


def run(
    log: Interactions, folder: Path, config: DistillConfig | None = None, **control: Any
) -> Outcome:
    control.setdefault("listener", lambda _: None)
    return Run(log, "f" * 64, config or small_config(), folder, Control(**control)).run()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in SUMMARY_FILES}


@pytest.fixture(scope="module")
def whole(log: Interactions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle made without any interruption."""
    folder = tmp_path_factory.mktemp("whole")
    run(log, folder)
    return folder


def test_runs_that_are_stopped_do_distil(whole: Path, soft: Path, scratch: Path) -> None:
    """Or what a resumed run does in outer steps would not show in its bytes."""
    for folder in (whole, soft, scratch):
        assert load_bundle(folder).manifest.validation["outer_step"] > 0


def test_same_seed_same_bytes_and_another_seed_others(
    log: Interactions, whole: Path, tmp_path: Path
) -> None:
    run(log, tmp_path / "again")
    assert bytes_of(tmp_path / "again") == bytes_of(whole)
    run(log, tmp_path / "other", small_config(seed=1))
    assert bytes_of(tmp_path / "other") != bytes_of(whole)


@pytest.mark.parametrize("looks", [1, 2, 4, 5, 7, 9, 10, 11, 13, 14, 16])
def test_a_run_stopped_anywhere_goes_on_to_the_same_bytes(
    log: Interactions, whole: Path, tmp_path: Path, looks: int
) -> None:
    # `stop` is asked after each of 4 epochs, 6 outer steps and 6 or 9 looks at learners that
    # measure (three on each kind of training data): stop at the given look, once.
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == looks

    with pytest.raises(Interrupted):
        run(log, tmp_path, stop=stop)
    assert (tmp_path / CHECKPOINT_FILE).exists()
    run(log, tmp_path, stop=stop)
    assert bytes_of(tmp_path) == bytes_of(whole)
    assert not (tmp_path / CHECKPOINT_FILE).exists()


def test_a_run_with_several_learners_a_step_goes_on_to_the_same_bytes(
    log: Interactions, whole: Path, tmp_path: Path
) -> None:
    config = small_config(outer={"learners": 2})
    run(log, tmp_path / "whole", config)
    stops = iter(range(1, 8))
    with pytest.raises(Interrupted):
        run(log, tmp_path / "stopped", config, stop=lambda: next(stops) == 7)
    run(log, tmp_path / "stopped", config)
    assert bytes_of(tmp_path / "stopped") == bytes_of(tmp_path / "whole")
    assert bytes_of(tmp_path / "stopped") != bytes_of(whole)


# Steps on this small log do better than noise, but not than users' histories.
SOFT = paper_config(summary={"start": "random"})


@pytest.fixture(scope="module")
def soft(log: Interactions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the paper's method, made without any interruption."""
    folder = tmp_path_factory.mktemp("soft")
    run(log, folder, SOFT)
    return folder


@pytest.mark.parametrize("looks", [7, 19])
def test_a_run_with_soft_inputs_goes_on_to_the_same_bytes(
    log: Interactions, soft: Path, tmp_path: Path, looks: int
) -> None:
    """The 19th look is at learners that measure."""
    stops = iter(range(1, looks + 1))

    with pytest.raises(Interrupted):
        run(log, tmp_path, SOFT, stop=lambda: next(stops) == looks)
    run(log, tmp_path, SOFT)
    assert bytes_of(tmp_path) == bytes_of(soft)


def test_a_run_without_outer_steps_hands_over_its_start(log: Interactions, tmp_path: Path) -> None:
    """And is a run like any other: it validates, measures, stops and goes on."""
    config = small_config(outer={"steps": 0, "shared_steps": 0})
    events: list[Event] = []
    outcome = run(log, tmp_path / "whole", config, listener=events.append)
    assert outcome.manifest.validation["outer_step"] == 0
    assert outcome.manifest.validation["summary_ndcg@10"] > 0
    phases = [event.phase for event in events if isinstance(event, PhaseStarted)]
    assert phases == ["preparing", "pretraining", "distilling", "evaluating"]
    assert not [e for e in events if isinstance(e, Progress) and e.phase == "distilling"]
    rows = {row["name"]: row for row in outcome.rows if row["protocol"] == "all"}
    assert list(rows) == [*LOG_ROWS, *learner_rows(outcome.manifest)]
    assert "initial summary" not in rows  # it is the summary
    stops = iter(range(1, 7))
    with pytest.raises(Interrupted):  # after 4 epochs, at the second learner that measures
        run(log, tmp_path / "stopped", config, stop=lambda: next(stops) == 6)
    run(log, tmp_path / "stopped", config)
    assert bytes_of(tmp_path / "stopped") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize("over", [{}, PAPER])
def test_what_is_written_is_what_was_measured(
    log: Interactions, tmp_path: Path, over: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors are rounded before learners measure them, and the file loses nothing more."""
    measured: list[Any] = []

    def rows(benchmark: Any, name: str, summary: Any, *rest: Any) -> list[Row]:
        measured.append((name, summary))
        return summary_rows(benchmark, name, summary, *rest)

    monkeypatch.setattr(run_module, "summary_rows", rows)
    summary = {"table_step": 0.2, "label_step": 0.5}
    run(log, tmp_path, small_config(**merge(over, {"summary": summary})))
    result = dict(measured)["TD3 summary"]
    kept = load_bundle(tmp_path).factors
    for mine, read in zip((*result.learned, result.V), (*kept.learned, kept.V), strict=True):
        assert torch.equal(mine, read)
    assert pack(result.V)[1]["type"] == "int8"
    for part in (part for _, summary in measured for part in summary.learned):
        assert pack(part)[1]["type"] == ("float16" if over else "int8")


FROM_SCRATCH = small_config(mode="from-scratch")


@pytest.fixture(scope="module")
def scratch(log: Interactions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle distilled for learners from scratch, made without any interruption."""
    folder = tmp_path_factory.mktemp("scratch")
    run(log, folder, FROM_SCRATCH)
    return folder


@pytest.mark.parametrize("looks", [3, 5, 8, 10, 12])
def test_a_run_for_learners_from_scratch_goes_on_to_the_same_bytes(
    log: Interactions, scratch: Path, tmp_path: Path, looks: int
) -> None:
    """Their item tables and Adam's moments of them are in the checkpoint's pool."""
    stops = iter(range(1, looks + 1))

    with pytest.raises(Interrupted):
        run(log, tmp_path, FROM_SCRATCH, stop=lambda: next(stops) == looks)
    run(log, tmp_path, FROM_SCRATCH)
    assert bytes_of(tmp_path) == bytes_of(scratch)


def test_a_bundle_says_whom_it_was_distilled_for(whole: Path, scratch: Path) -> None:
    for folder, mode in ((whole, "shared-items"), (scratch, "from-scratch")):
        bundle = load_bundle(folder)
        assert bundle.manifest.distilled_for == bundle.manifest.config.mode == mode
        measured = {row["name"]: row["mode"] for row in bundle.manifest.results}
        modes = dict.fromkeys(LOG_ROWS, "from-scratch") | dict.fromkeys(
            learner_rows(bundle.manifest), mode
        )
        assert list(measured.items()) == list(modes.items())
    one, other = load_bundle(whole).factors, load_bundle(scratch).factors
    assert torch.equal(one.V, other.V)  # one teacher
    assert isinstance(one, LabelledSummary)
    assert isinstance(other, LabelledSummary)
    assert torch.equal(one.items, other.items)  # one choice of users
    steps = [load_bundle(folder).manifest.validation["outer_step"] for folder in (whole, scratch)]
    assert torch.equal(one.labels, other.labels) == (not any(steps))


def test_recomputing_graphs_from_scratch_changes_nothing(
    log: Interactions, scratch: Path, tmp_path: Path
) -> None:
    run(log, tmp_path, small_config(mode="from-scratch", outer={"recompute": True}))
    name = "summary.safetensors"
    assert (tmp_path / name).read_bytes() == (scratch / name).read_bytes()


def test_a_checkpoint_of_the_other_mode_is_refused(log: Interactions, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(log, tmp_path, stop=lambda: True)
    with pytest.raises(CheckpointMismatchError, match=CHECKPOINT_FILE):
        run(log, tmp_path, FROM_SCRATCH)


def test_checkpoints_come_when_due_and_are_announced_complete(
    log: Interactions, tmp_path: Path
) -> None:
    seen: list[tuple[Phase, int]] = []

    def on_checkpoint(path: Path, phase: Phase, step: int) -> None:
        torch.load(path, weights_only=True)
        seen.append((phase, step))

    outcome = run(log, tmp_path, on_checkpoint=on_checkpoint, checkpoint_seconds=0)
    assert seen == [("pretraining", n) for n in (1, 2, 3, 4)] + [
        ("distilling", n) for n in (1, 2, 3, 4, 5, 6, 6)
    ] + [("evaluating", 6)] * len(learner_rows(outcome.manifest)) * len(RESULT_SEEDS)


@dataclass
class Clock:
    """Time that passes when it is told to."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        return self.now


def test_checkpoints_that_take_long_come_seldom(
    log: Interactions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch or step takes 10 s here and a checkpoint 4 s: the next one is due 400 s later, so
    that writing them takes one percent of the time. Asked for every 15 s."""
    clock = Clock()
    written: list[tuple[Phase, int]] = []

    def listener(event: Event) -> None:
        clock.now += 10 * isinstance(event, Progress)

    def on_checkpoint(_path: Path, phase: Phase, step: int) -> None:
        clock.now += 4
        written.append((phase, step))

    monkeypatch.setattr("td3engine.pipeline.checkpoint.time", clock)
    config = small_config(outer={"steps": 100, "validate_every": 1000})
    control = {"listener": listener, "on_checkpoint": on_checkpoint, "checkpoint_seconds": 15}
    run(log, tmp_path, config, **control)
    # 2 of 4 epochs, then 40 steps of any kind each; and one when distilling is done.
    steps = [("distilling", step) for step in (38, 78, 100)]
    assert written == [("pretraining", 2), *steps]


def test_a_checkpoint_of_distilling_holds_the_teacher_without_its_optimizer(
    log: Interactions, tmp_path: Path
) -> None:
    stops = iter(range(1, 7))
    with pytest.raises(Interrupted):
        run(log, tmp_path, stop=lambda: next(stops) == 6)
    kept = torch.load(tmp_path / CHECKPOINT_FILE, weights_only=True)
    assert "teacher" not in kept
    shapes = {
        name: value.shape
        for name, value in kept["trained"].items()
        if name != "early"
        if isinstance(value, torch.Tensor)
    }
    assert set(shapes) == {"parameters", "table"}


def test_a_checkpoint_of_another_configuration_is_refused(
    log: Interactions, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        run(log, tmp_path, stop=lambda: True)
    with pytest.raises(CheckpointMismatchError, match=CHECKPOINT_FILE):
        run(log, tmp_path, small_config(seed=1))


def test_phases_and_progress_in_order(log: Interactions, tmp_path: Path) -> None:
    events: list[Event] = []
    run(log, tmp_path, listener=events.append)
    phases = [event.phase for event in events if isinstance(event, PhaseStarted)]
    assert phases == ["preparing", "pretraining", "distilling", "evaluating"]
    steps = [e.step for e in events if isinstance(e, Progress) and e.phase == "distilling"]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_throttling_keeps_the_last_step_and_everything_else() -> None:
    passed: list[Event] = []
    listen = throttled(passed.append, every_seconds=1000)
    steps: list[Event] = [Progress("distilling", n, 5) for n in range(1, 6)]
    for event in [PhaseStarted("distilling"), *steps]:
        listen(event)
    assert passed == [
        PhaseStarted("distilling"),
        Progress("distilling", 1, 5),
        Progress("distilling", 5, 5),
    ]


def test_throttling_keeps_where_a_phase_ended_early() -> None:
    passed: list[Event] = []
    listen = throttled(passed.append, every_seconds=1000)
    for step in (1, 2, 3):
        listen(Progress("pretraining", step, 200))
    listen(PhaseStarted("distilling"))
    assert passed == [
        Progress("pretraining", 1, 200),
        Progress("pretraining", 3, 200),
        PhaseStarted("distilling"),
    ]


@pytest.mark.parametrize(
    ("mode", "backbone", "shared_steps", "softmax"),
    [
        ("shared-items", "sasrec", 0, "sampled"),
        ("from-scratch", "sasrec", 0, "full"),
        ("from-scratch", "sasrec", 2, "sampled"),
        ("shared-items", "bert4rec", 0, "full"),
    ],
)
def test_says_whether_learners_competed_with_a_sample(
    log: Interactions, tmp_path: Path, mode: str, backbone: str, shared_steps: int, softmax: str
) -> None:
    config = small_config(
        mode=mode,
        backbone={"name": backbone},
        outer={"softmax": "sampled", "negatives": 5, "shared_steps": shared_steps, "steps": 3},
    )
    events: list[Event] = []
    run(log, tmp_path, config, listener=events.append)
    assert load_bundle(tmp_path).manifest.config.outer.softmax == softmax
    notes = [event.message for event in events if isinstance(event, Note)]
    assert sum(note.startswith("counting models' settings") for note in notes) == 1
    notes = [
        note for note in notes if "model that counts" not in note and "counting models" not in note
    ]
    others = "of test targets are items", "not distilled"
    notes = [note for note in notes if not any(words in note for words in others)]
    told = [note.startswith("outer: a sampled softmax, 5 of ") for note in notes]
    assert any(told) == (softmax == "sampled")
    ignored = [note.startswith("outer.softmax: sampled is ignored for ") for note in notes]
    assert any(ignored) == ((mode, backbone) != ("shared-items", "sasrec"))
    assert len(notes) == sum(told) + sum(ignored)


def test_settings_of_an_earlier_release_are_ignored_and_the_user_is_told(
    log: Interactions, whole: Path, tmp_path: Path
) -> None:
    """A job stored by that release gives the same summary; so its manifest loads, too."""
    events: list[Event] = []
    outer = {"compiled": True, "vectorised": False}
    run(log, tmp_path, small_config(outer=outer), listener=events.append)
    notes = [event.message for event in events if isinstance(event, Note)]
    assert [note for note in notes if "ignored" in note] == [retired_note("outer.compiled")]
    name = "summary.safetensors"
    assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["config"].pop("ignored") == ["outer.compiled"]
    manifest["config"]["outer"] |= outer
    path.write_text(json.dumps(manifest))
    assert load_bundle(tmp_path).manifest.config.ignored == ("outer.compiled",)


def test_the_bundle_says_how_it_was_made(log: Interactions, whole: Path) -> None:
    bundle = load_bundle(whole)
    said = {"softmax": "full"}  # what `auto` came to
    data = {"validate_by": "unseen", "duplicates": "keep"}
    teacher = {**said, "counting_share": 0.7}
    settled = small_config(auto=(), teacher=teacher, outer={**said, "support": "all"}, data=data)
    assert bundle.manifest.config == settled
    assert bundle.manifest.fingerprint == "f" * 64
    n = len(bundle.item_ids)
    assert isinstance(bundle.factors, LabelledSummary)
    assert bundle.factors.items.shape == (4, 8)
    assert bundle.factors.labels.shape == (4, 7, 8)
    assert bundle.factors.V.shape == (n, 8)
    assert bundle.manifest.numbers_stored == {"learned": 4 * 7 * 8, "V": n * 8}
    assert {row["name"] for row in bundle.manifest.results} == {
        *LOG_ROWS,
        *learner_rows(bundle.manifest),
    }
    assert {row["protocol"] for row in bundle.manifest.results} == {
        "all",
        "unseen",
        "sampled-100",
    }
    assert "seconds" not in (whole / "manifest.json").read_text()


def test_a_bundle_of_soft_inputs_says_how_it_was_made(soft: Path) -> None:
    bundle = load_bundle(soft)
    assert isinstance(bundle.factors, TuckerSummary)
    assert bundle.factors.U.shape == (4, 2)
    assert bundle.factors.T.shape == (8, 2)
    assert bundle.factors.Y is not None
    assert bundle.factors.Y.shape == (8, 2)
    assert bundle.factors.G.shape == (2, 2, 8)
    assert bundle.factors.V.shape == (len(bundle.item_ids), 8)
    assert bundle.manifest.numbers_stored == {
        "learned": 4 * 2 + 2 * 8 * 2 + 2 * 2 * 8,
        "V": len(bundle.item_ids) * 8,
    }
    rows = learner_rows(bundle.manifest, SOFT_LEARNER_ROWS)
    assert {row["name"] for row in bundle.manifest.results} == {*LOG_ROWS, *rows}


def test_a_bundle_of_before_a_setting_says_what_it_had(whole: Path, tmp_path: Path) -> None:
    for file, content in bytes_of(whole).items():
        (tmp_path / file).write_bytes(content)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert load_bundle(tmp_path).manifest.config.learner.beta2 == 0.95
    assert load_bundle(tmp_path).manifest.config.teacher.counting_share == 0.7
    del manifest["config"]["learner"]["beta2"], manifest["config"]["teacher"]["counting_share"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert load_bundle(tmp_path).manifest.config.learner.beta2 == 0.999
    assert load_bundle(tmp_path).manifest.config.teacher.counting_share == 0.0


@pytest.mark.parametrize("name", sorted(SUMMARY_FILES))
def test_a_damaged_or_incomplete_bundle_is_refused(whole: Path, tmp_path: Path, name: str) -> None:
    for file, content in bytes_of(whole).items():
        (tmp_path / file).write_bytes(content)
    damaged = bytearray((tmp_path / name).read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / name).write_bytes(damaged)
    with pytest.raises(BundleError):
        load_bundle(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_bundle(tmp_path)


def test_a_manifest_cannot_name_files_elsewhere(whole: Path, tmp_path: Path) -> None:
    for file, content in bytes_of(whole).items():
        (tmp_path / file).write_bytes(content)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["checksums"]["../secret"] = "0" * 64
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="secret"):
        load_bundle(tmp_path)


def test_a_log_that_the_filter_empties_is_refused(log: Interactions, tmp_path: Path) -> None:
    strict = small_config(data={"min_user_interactions": 1000})
    with pytest.raises(LogError) as refused:
        run(log, tmp_path, strict)
    assert refused.value.code == "too_little_data"


def test_threads_without_cores_of_their_own_are_told_of(
    log: Interactions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "td3engine.pipeline.run.cpu_contention", lambda: f"{torch.get_num_threads()} is many"
    )
    said: list[Event] = []
    run(log, tmp_path, listener=said.append)
    assert Note("1 is many") in said  # of the threads that the configuration asks for


def test_a_log_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    """Three events a user are a question each, and leave one event: nothing follows it."""
    rows = [f"u{user},i{item},{item}" for user in range(9) for item in range(3)]
    for more, enough in ([], False), (["u3,i9,9"], True), (["new,i0,0", "new,i1,1"], True):
        path = tmp_path / f"{len(more)}.csv"
        path.write_text("\n".join(["user,item,time", *rows, *more]))
        folder = tmp_path / f"out-{len(more)}"
        if enough:
            run(read_log(path), folder)
            continue
        with pytest.raises(LogError, match="nothing to train on") as refused:
            run(read_log(path), folder)
        assert refused.value.code == "too_little_data"


def test_settings_that_diverge_are_said_so(log: Interactions, tmp_path: Path) -> None:
    wild = small_config(learner={"lr": 1e30})
    with pytest.raises(DivergedError, match="outer step 1 "):
        run(log, tmp_path, wild)
    start = small_config(learner={"lr": 1e30}, outer={"steps": 0, "shared_steps": 0})
    with pytest.raises(DivergedError, match=r"a learner diverged within 8 steps: .*learner\.lr"):
        run(log, tmp_path / "start", start)
    with pytest.raises(DivergedError, match="epoch 1"):
        run(log, tmp_path, small_config(teacher={"lr": 1e30}))


def test_a_start_on_which_learners_diverge_spoils_no_job(
    log: Interactions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(benchmark: Any, name: str, *rest: Any) -> list[Row]:
        if name == "initial summary":
            raise DivergedError("a learner diverged")
        return summary_rows(benchmark, name, *rest)

    monkeypatch.setattr(run_module, "summary_rows", rows)
    # Another summary is chosen, and measured beside its start.
    monkeypatch.setattr(Distillation, "_validate_start", lambda _distillation: None)
    said: list[Event] = []
    outcome = run(log, tmp_path, listener=said.append)
    names = {row["name"] for row in outcome.rows}
    assert names == {*LOG_ROWS, *LEARNER_ROWS} - {"initial summary"}
    notes = [each.message for each in said if isinstance(each, Note)]
    assert any("at initialisation: a learner diverged" in note for note in notes)


def test_labelled_users_on_whom_learners_diverge_spoil_no_job(
    log: Interactions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(benchmark: Any, name: str, *rest: Any) -> list[Row]:
        if name == "labelled users":
            raise DivergedError("a learner diverged")
        return labelled_rows(benchmark, name, *rest)

    monkeypatch.setattr(run_module, "labelled_rows", rows)
    said: list[Event] = []
    outcome = run(log, tmp_path, listener=said.append)
    names = {row["name"] for row in outcome.rows}
    assert names == {*LOG_ROWS, *learner_rows(outcome.manifest)} - {"labelled users"}
    assert Note("no figures of labelled users: a learner diverged") in said


def test_ease_is_left_out_of_a_log_of_too_many_items(
    log: Interactions, whole: Path, tmp_path: Path
) -> None:
    n_items = len(load_bundle(whole).item_ids)
    for limit, there in ((n_items, True), (n_items - 1, False)):
        config = small_config(teacher={"ease_items": limit})
        outcome = run(log, tmp_path / str(limit), config)
        assert ("EASE" in {row["name"] for row in outcome.rows}) == there


@pytest.mark.parametrize("over", [{}, PAPER])
def test_rows_say_what_they_cost(log: Interactions, tmp_path: Path, over: dict[str, Any]) -> None:
    """Sizes against hand counts; seconds of making only where something was made."""
    outcome = run(log, tmp_path, small_config(**over))
    kept = load_bundle(tmp_path)
    n, d, mu, zeta = len(kept.item_ids), 8, 4, 8
    V = n * d
    user = (zeta - 1) * d + zeta  # labels, and items
    rows = {row["name"]: row for row in outcome.rows if row["protocol"] == "all"}
    own = mu * user + V if not over else mu * 2 + 2 * zeta * 2 + 2 * 2 * d + V
    sizes = {
        "labelled users": (mu, mu * user + V),
        "TD3 summary": (mu, own),
    }
    if "initial summary" in learner_rows(outcome.manifest):
        sizes["initial summary"] = mu, own
    if over:
        users = rows["labelled, same bytes"]["sequences"]
        assert users is not None
        sizes["labelled, same bytes"] = users, users * user + V
        # As many as there are bytes for: one more would not fit.
        room = rows["TD3 summary"]["bytes"] - rows["labelled, same bytes"]["bytes"]
        assert abs(room) < 4 * user
    for name, (sequences, numbers) in sizes.items():
        row = rows[name]
        assert (row["sequences"], row["numbers_stored"]) == (sequences, numbers)
        assert 0 < row["bytes"] < 4 * numbers + 1000  # a header
        assert row["seeds"] == len(RESULT_SEEDS)
    assert rows["TD3 summary"]["bytes"] == (tmp_path / FACTORS_FILE).stat().st_size
    full = rows["full data"]
    assert (full["sequences"], full["numbers_stored"], full["bytes"]) == (40, 480, 16 * 480)
    assert rows["popularity"]["bytes"] == 4 * n
    assert rows["TD3 summary"]["making_seconds"] == outcome.seconds["distilling"] > 0
    assert 0 < rows["labelled users"]["making_seconds"] < 5
    assert {row["making_seconds"] for name, row in rows.items() if name in LOG_ROWS} == {0.0}
    # The teacher has all of them.
    least = sum(rows[name]["train_seconds"] for name in LOG_ROWS[1:])
    assert rows["teacher"]["train_seconds"] > least
    assert kept.manifest.results == [as_written(row) for row in outcome.rows]


def test_a_full_disk_leaves_no_half_manifest_and_the_run_goes_on(
    log: Interactions, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def full_once_the_items_are_written(file: int) -> None:
        if (tmp_path / "items.parquet").exists():
            raise OSError("no space left on device")
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr("td3engine.files.os.fsync", full_once_the_items_are_written)
        with pytest.raises(OSError, match="no space"):
            run(log, tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    run(log, tmp_path)
    assert bytes_of(tmp_path) == bytes_of(whole)
    assert {path.name for path in tmp_path.iterdir()} == set(SUMMARY_FILES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_is_refused(log: Interactions, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cuda"):
        run(log, tmp_path, small_config(device="cuda"))


def test_recomputing_graphs_changes_the_cost_and_not_the_summary(
    log: Interactions, whole: Path, tmp_path: Path
) -> None:
    run(log, tmp_path, small_config(outer={"recompute": True}))
    name = "summary.safetensors"
    assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_learners_may_start_from_the_teachers_early_epochs(
    log: Interactions, whole: Path, tmp_path: Path
) -> None:
    run(log, tmp_path, small_config(outer={"start": "teacher"}))
    assert bytes_of(tmp_path) != bytes_of(whole)


def test_too_few_items_for_negatives_is_said_and_leaves_the_others(tmp_path: Path) -> None:
    lines = ["user_id,item_id,timestamp"]
    lines += [f"u{user},i{(user + n) % 20},{n}" for user in range(20) for n in range(8)]
    path = tmp_path / "tiny.csv"
    path.write_text("\n".join(lines) + "\n")
    events: list[Event] = []
    outcome = run(read_log(path), tmp_path / "out", listener=events.append)
    assert {row["protocol"] for row in outcome.rows} == {"all", "unseen"}
    assert any("sampled-100" in str(event) for event in events)


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@CUDA
@pytest.mark.parametrize("mode", ["shared-items", "from-scratch"])
def test_a_run_on_cuda_gives_the_same_bytes_again_and_when_stopped(
    log: Interactions, tmp_path: Path, mode: str
) -> None:
    config = small_config(device="cuda", mode=mode, outer={"learners": 2})
    outcome = run(log, tmp_path / "whole", config)
    assert load_bundle(tmp_path / "whole").manifest == outcome.manifest
    run(log, tmp_path / "again", config)
    stops = iter(range(1, 8))
    with pytest.raises(Interrupted):
        run(log, tmp_path / "stopped", config, stop=lambda: next(stops) == 7)
    run(log, tmp_path / "stopped", config)
    for folder in ("again", "stopped"):
        assert bytes_of(tmp_path / folder) == bytes_of(tmp_path / "whole")


def test_the_teacher_may_have_a_dropout_of_its_own(
    log: Interactions, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains with that, or with the backbone's; learners with theirs."""
    rates: list[float] = []

    def watched(config: BackboneConfig, history: int) -> Backbone:
        rates.append(config.dropout)
        return build_backbone(config, history)

    for module in (run_module, network_module):
        monkeypatch.setattr(module, "build_backbone", watched)
    rate = small_config().backbone.dropout
    assert rate > 0
    learner = {"dropout": 0.35}
    run(log, tmp_path / "own", small_config(teacher={"dropout": 0.0}, learner=learner))
    assert rates == [0.35, 0.0]  # of learners, of the teacher
    own, like = load_bundle(tmp_path / "own").factors, load_bundle(whole).factors
    assert not torch.equal(own.V, like.V)
    run(log, tmp_path / "said", small_config(teacher={"dropout": rate}))
    assert rates[2:] == [0.0, rate]
    assert torch.equal(load_bundle(tmp_path / "said").factors.V, like.V)
