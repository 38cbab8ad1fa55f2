"""The command line, and the worker's child process, as their callers see them."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from td3engine.cli import main as cli
from td3engine.client import Problem, ServiceError
from td3engine.contract import ARTIFACT_FILES, SUMMARY_FILES
from td3engine.data.normalised import write_normalised
from td3engine.data.reading import read_log
from td3engine.summary.bundle import load_bundle
from tests.td3engine.small import (
    LOG_ROWS,
    SMALL,
    learner_rows,
    set_options,
    small_config,
    write_small_log,
)

runner = CliRunner()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_log(tmp_path_factory.mktemp("log") / "log.csv")


def test_distil_then_train(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "summary"
    done = runner.invoke(cli.app, ["distill", str(log), "--out", str(out), *set_options()])
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == set(SUMMARY_FILES)
    assert "NDCG@10" in done.output
    model = tmp_path / "model.safetensors"
    arguments = ["train", str(out), "--log", str(log), "--seeds", "2", "--save", str(model)]
    done = runner.invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    summary = [line.split() for line in done.output.splitlines() if line.startswith("TD3 summary")]
    # Two modes under three protocols; nobody measured here how long the summary took to make.
    assert [line[2] for line in summary] == ["shared", "scratch"] * 3
    assert {len(line) for line in summary} == {9}
    assert safetensors.torch.load_file(model)["items"].shape[1] == 8
    done = runner.invoke(cli.app, ["distill", str(log), "--out", str(out), *set_options()])
    assert done.exit_code == 65
    assert "already" in done.output
    other = write_small_log(tmp_path / "other.csv", users=3)
    done = runner.invoke(cli.app, ["train", str(out), "--log", str(other)])
    assert done.exit_code == 65
    assert "not the log" in done.output


def test_a_log_with_names_and_limits_of_its_own(log: Path, tmp_path: Path) -> None:
    """The same summary as from the usual names; and what is wrong with an option is named."""
    header, *rows = log.read_text().splitlines()
    other = tmp_path / "other.csv"
    named = header.replace("user_id", "buyer").replace("timestamp", "when")
    other.write_text("\n".join([named, *rows, ""]))
    columns = ["--columns", "user=buyer", "--columns", "time=when"]
    for path, given in ((log, []), (other, columns)):
        arguments = [
            "distill",
            str(path),
            "--out",
            str(tmp_path / path.stem),
            *set_options(),
            *given,
        ]
        assert runner.invoke(cli.app, arguments).exit_code == 0
    summaries = [tmp_path / name / "summary.safetensors" for name in (log.stem, other.stem)]
    assert summaries[0].read_bytes() == summaries[1].read_bytes()
    train = ["train", str(tmp_path / other.stem), "--log", str(other), "--seeds", "1"]
    assert runner.invoke(cli.app, train).exit_code == 65  # there is no user_id
    assert runner.invoke(cli.app, [*train, *columns]).exit_code == 0
    few = runner.invoke(cli.app, [*train, *columns, "--limits", "max_rows=3"])
    assert few.exit_code == 65
    assert "3" in few.output
    for wrong, why in (("max_rows=none", "max_rows"), ("rows=3", "rows"), ("max_rows", "NAME=")):
        refused = runner.invoke(cli.app, [*train, "--limits", wrong])
        assert refused.exit_code == 2
        assert why in refused.output


def test_what_auto_cannot_size_is_named(log: Path, tmp_path: Path) -> None:
    own = set_options({key: value for key, value in SMALL.items() if key != "outer"})
    many = ["--set", "mode=from-scratch", "--set", "outer.shared_steps=600000"]
    given = [*own, *many, "--set", "outer.window=3", "--preset", "auto"]
    done = runner.invoke(cli.app, ["distill", str(log), "--out", str(tmp_path / "out"), *given])
    assert done.exit_code == 2
    assert "outer.steps" in done.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_summary_made_on_a_gpu_is_for_others_too(
    log: Path, distilled: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(distilled, tmp_path / "summary")
    manifest = folder / "manifest.json"
    made = json.loads(manifest.read_text())
    made["config"]["device"] = "cuda"
    manifest.write_text(json.dumps(made))
    train = ["train", str(folder), "--log", str(log), "--seeds", "1"]
    assert runner.invoke(cli.app, train).exit_code == 0
    export = ["export", str(folder), "--out", str(tmp_path / "x.csv"), "--copies", "1"]
    assert runner.invoke(cli.app, export).exit_code == 0


def test_a_model_that_cannot_be_written_is_refused_before_training(
    log: Path, distilled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "td3engine.evaluation.baselines.summary_rows", lambda *_: pytest.fail("it trained")
    )
    there = tmp_path / "there.safetensors"
    there.write_bytes(b"mine")
    for path, why in ((there, "exists already"), (tmp_path / "no" / "x", "no folder")):
        arguments = ["train", str(distilled), "--log", str(log), "--save", str(path)]
        done = runner.invoke(cli.app, arguments)
        assert done.exit_code == 65
        assert why in done.output
    assert there.read_bytes() == b"mine"


@pytest.mark.parametrize("backbone", ["gru4rec", "narm", "bert4rec"])
def test_another_model_trains_on_a_summary(
    backbone: str, log: Path, tmp_path: Path, distilled: Path
) -> None:
    model = tmp_path / "model.safetensors"
    arguments = ["train", str(distilled), "--log", str(log), "--seeds", "1"]
    done = runner.invoke(cli.app, [*arguments, "--backbone", backbone, "--save", str(model)])
    assert done.exit_code == 0, done.output
    tensors = safetensors.torch.load_file(model)
    assert tensors["items"].shape[1] == 8
    assert ("item_bias" in tensors) == (backbone == "bert4rec")


def test_learners_have_settings_of_their_own(log: Path, distilled: Path) -> None:
    arguments = ["train", str(distilled), "--log", str(log), "--seeds", "1"]
    done = runner.invoke(cli.app, [*arguments, "--set", "learner.steps=5", "--backbone", "narm"])
    assert done.exit_code == 0, done.output
    for setting, said in (
        ("learner.stepps=5", "learner.stepps"),
        ("learner.steps=0", "learner.steps"),
        ("outer.steps=5", "only learner.*"),
        ("learner=5", "only learner.*"),
    ):
        done = runner.invoke(cli.app, [*arguments, "--set", setting])
        assert done.exit_code == 2, done.output
        assert said in done.output


@pytest.fixture
def distilled(log: Path, tmp_path: Path) -> Path:
    out = tmp_path / "distilled"
    done = runner.invoke(cli.app, ["distill", str(log), "--out", str(out), *set_options()])
    assert done.exit_code == 0, done.output
    return out


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("outer.steps", "KEY=VALUE"),
        ("outer.steps=none", "outer.steps"),
        ("outer.stepps=3", "outer.stepps"),
        ("seed.x=3", "seed is a value"),
        ("outer.window=4000", "outer.window"),
        ("[/]=1", "[/]"),
    ],
)
def test_a_wrong_setting_is_named(log: Path, tmp_path: Path, setting: str, said: str) -> None:
    arguments = ["distill", str(log), "--out", str(tmp_path), "--set", setting]
    done = runner.invoke(cli.app, arguments)
    assert done.exit_code == 2
    assert said in done.output


def test_null_takes_a_value_away(log: Path, tmp_path: Path) -> None:
    """Only where a knob can be without one."""
    small = [*set_options(), "--set", "outer.scratch_lr=0.06"]
    rates = []
    for nth, more in enumerate([[], ["--set", "outer.scratch_lr=null"]]):
        out = tmp_path / str(nth)
        done = runner.invoke(cli.app, ["distill", str(log), "--out", str(out), *small, *more])
        assert done.exit_code == 0, done.output
        rates.append(load_bundle(out).manifest.config.outer.scratch_lr)
    assert rates == [0.06, None]
    wrong = ["distill", str(log), "--out", str(tmp_path), "--set", "outer.lr=null"]
    done = runner.invoke(cli.app, wrong)
    assert done.exit_code == 2
    assert "outer.lr" in done.output


@pytest.mark.parametrize("command", ["distill", "train"])
def test_a_missing_file_is_one_line(tmp_path: Path, command: str, log: Path) -> None:
    absent = str(tmp_path / "absent")
    arguments = {
        "distill": ["distill", absent, "--out", str(tmp_path / "o")],
        "train": ["train", absent, "--log", str(log)],
    }[command]
    done = runner.invoke(cli.app, arguments)
    assert done.exit_code == 65
    assert "absent" in done.output
    assert "Traceback" not in done.output


def test_a_folder_in_place_of_a_log_is_one_line(tmp_path: Path) -> None:
    done = runner.invoke(cli.app, ["distill", str(tmp_path), "--out", str(tmp_path / "o")])
    assert done.exit_code == 65
    assert "Traceback" not in done.output


def test_what_a_service_refuses_is_one_line_of_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise ServiceError(Problem(status=422, detail="no item column", code="missing_column"))

    monkeypatch.setattr("td3engine.cli.demo.run_demo", refused)
    done = runner.invoke(cli.app, ["demo", "--out", str(tmp_path)])
    assert done.exit_code == 65
    assert "no item column (missing_column)" in done.output
    assert "Traceback" not in done.output


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from td3engine.cli import main as cli\n"
        "try: cli.app(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("distill", "train", "baselines", "demo", "serve"):
        assert command in done.stdout


def child(folder: Path, log: Path, config: str) -> subprocess.Popen[str]:
    write_normalised(read_log(log), folder / "log.parquet")
    (folder / "config.json").write_text(config)
    command = [sys.executable, "-m", "td3engine.cli", "run", "--data", str(folder / "log.parquet")]
    command += ["--config", str(folder / "config.json"), "--out", str(folder / "out")]
    return subprocess.Popen(
        [*command, "--checkpoint-seconds", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_child_speaks_json_lines_and_ends_with_a_result(log: Path, tmp_path: Path) -> None:
    process = child(tmp_path, log, small_config().model_dump_json())
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    kinds = {event["event"] for event in events} - {"log"}  # a note that counting is enough
    assert kinds == {"phase", "progress", "checkpoint", "result"}
    result = events[-1]
    assert result["event"] == "result"
    assert {artifact["name"] for artifact in result["artifacts"]} == set(ARTIFACT_FILES)
    assert all(Path(artifact["path"]).exists() for artifact in result["artifacts"])
    rows = learner_rows(load_bundle(tmp_path / "out").manifest)
    assert {row["name"] for row in result["metrics"]["rows"]} == {*LOG_ROWS, *rows}


def test_the_child_leaves_with_a_checkpoint_on_sigterm(log: Path, tmp_path: Path) -> None:
    endless = small_config(outer={"steps": 1_000_000})
    process = child(tmp_path, log, endless.model_dump_json())
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "checkpoint" and event["phase"] == "distilling":
            break
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert [json.loads(line)["event"] for line in out.splitlines()][-2:] == ["checkpoint", "log"]
    assert (tmp_path / "out" / "checkpoint.pt").exists()


def test_the_child_begins_anew_over_a_checkpoint_of_another_configuration(
    log: Path, tmp_path: Path
) -> None:
    before = small_config(outer={"steps": 1_000_000})
    process = child(tmp_path, log, before.model_dump_json())
    assert process.stdout is not None
    assert any('"checkpoint"' in line for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    process = child(tmp_path, log, small_config().model_dump_json())
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert any("starting anew" in line for line in out.splitlines())


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ('{"outer": {"steps": -1}}', "invalid_config"),
        (
            small_config(data={"min_user_interactions": 999}).model_dump_json(),
            "too_little_data",
        ),
    ],
)
def test_the_child_refuses_for_good_what_a_retry_cannot_mend(
    log: Path, tmp_path: Path, config: str, code: str
) -> None:
    process = child(tmp_path, log, config)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 65, err
    last = json.loads(out.splitlines()[-1])
    assert (last["event"], last["code"]) == ("error", code)


@pytest.mark.parametrize("command", ["serve", "gc", "keys"])
def test_a_service_that_is_not_installed_is_said_in_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("td3engine.cli.service.find_spec", lambda _name: None)
    done = runner.invoke(cli.app, [command])
    assert done.exit_code == 65
    assert "pip install 'td3engine[engine,service,embedded]'" in done.output
