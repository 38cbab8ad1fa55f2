"""A backbone is one file: names, options, learner settings, and a file added to a copy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

import td3engine
from td3engine.cli.main import app
from td3engine.config import BACKBONES, BackboneConfig, DistillConfig, LearnerConfig
from td3engine.data.reading import read_log
from td3engine.events import Event
from td3engine.models.backbone import BackboneOptions, BackboneSpec
from td3engine.models.registry import backbone_spec, build_backbone, learner_of
from td3engine.pipeline.run import Control, Run
from tests.td3engine.small import small_config, write_small_log

PACKAGE = Path(td3engine.__file__).parent
FOLDER = PACKAGE / "models" / "backbones"

NEW_FILE = '''
"""Exponentially weighted mean of the events."""
import torch
from td3engine.models.backbone import BackboneOptions, BackboneSpec, Causal
from td3engine.models.flat_parameters import FlatParameters

class Options(BackboneOptions):
    decay: float = 0.5

class Mean(FlatParameters, Causal):
    def __init__(self, config, history):
        super().__init__({"out": (config.hidden, config.hidden)})
        self.config = config
        self.history = history
        self.decay = Options.model_validate(config.options).decay

    def dropout(self, sequences, events, generator, per_row=None, passes=1):
        return None

    def encode(self, parameters_P, input_BLD, dropout):
        at = torch.arange(input_BLD.shape[1])
        weights = (self.decay ** (at[:, None] - at).double()).tril().to(input_BLD)
        return weights @ input_BLD @ self.named(parameters_P)["out"]

BACKBONE = BackboneSpec(Mean, options=Options, learner={"steps": 12})
'''


def in_process(code: str, package: Path = PACKAGE, *arguments: str) -> str:
    """Standard output of Python code that imports td3engine from this folder."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(package.parent)},
        cwd=package.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_are_those_of_the_files() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert set(BACKBONES) == files
    name = DistillConfig.model_json_schema()["$defs"]["BackboneConfig"]["properties"]["name"]
    assert set(name["enum"]) == files


def test_names_are_known_without_torch() -> None:
    code = "import sys, td3engine.config as c; print(c.BACKBONES, 'torch' in sys.modules)"
    assert in_process(code).strip() == f"{BACKBONES} False"


def test_building_one_imports_no_other() -> None:
    code = """
import sys
from td3engine.config import BackboneConfig
from td3engine.models.registry import build_backbone
build_backbone(BackboneConfig(name="gru4rec"), 5)
prefix = "td3engine.models.backbones."
print(sorted(name.removeprefix(prefix) for name in sys.modules if name.startswith(prefix)))
"""
    assert in_process(code).strip() == "['gru4rec']"


def test_a_file_is_all_that_a_new_backbone_needs(tmp_path: Path) -> None:
    """Its name in the schema and in --help, its options, its learners, and a whole run."""
    package = tmp_path / "td3engine"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "models" / "backbones" / "decaying_mean.py").write_text(NEW_FILE)
    log, settings = write_small_log(tmp_path / "log.csv"), tmp_path / "config.json"
    code = """
import sys
from pathlib import Path
from typer.testing import CliRunner
from td3engine.cli.main import app
from td3engine.config import DistillConfig
from td3engine.data.reading import read_log
from td3engine.models.registry import learner_of
from td3engine.pipeline.run import Control, Run
log, settings, out = map(Path, sys.argv[1:])
config = DistillConfig.model_validate_json(settings.read_bytes())
outcome = Run(read_log(log), "f" * 64, config, out, Control(listener=lambda _: None)).run()
assert outcome.manifest.config.backbone.options == {"decay": 0.8}
default = DistillConfig()
assert learner_of(default, "decaying_mean").learner.steps == 12
help = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output
assert "decaying_mean" in help, help
print(outcome.manifest.config.backbone.name)
"""
    config = small_config().model_dump()
    config["backbone"] |= {"name": "decaying_mean", "options": {"decay": 0.8}}
    settings.write_text(json.dumps(config))
    out = in_process(code, package, str(log), str(settings), str(tmp_path / "out"))
    assert out.strip() == "decaying_mean"


@pytest.mark.parametrize("value", [True, 3, 0.25, "relative"])
def test_options_keep_their_type_in_json(value: Any) -> None:
    config = BackboneConfig(options={"some": value})
    again = BackboneConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert type(again.options["some"]) is type(value)


@pytest.mark.parametrize("value", [[1], {"a": 1}, None, float("nan")])
def test_options_are_flat(value: Any) -> None:
    with pytest.raises(ValidationError, match=r"options.some"):
        BackboneConfig(options={"some": value})


def test_a_configuration_without_options_still_validates() -> None:
    older = DistillConfig().model_dump()
    del older["backbone"]["options"]
    assert DistillConfig.model_validate(older) == DistillConfig()


@pytest.mark.parametrize(
    ("name", "options", "paths"),
    [
        ("sasrec", {"gate": 1}, ["backbone.options.gate"]),
        (
            "esasrec",
            {"gate": 1, "gated": "perhaps"},
            ["backbone.options.gated", "backbone.options.gate"],
        ),
        ("hstu", {"positions": "absolute"}, ["backbone.options.positions"]),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, Any], paths: list[str]) -> None:
    with pytest.raises(ValidationError) as refused:
        build_backbone(BackboneConfig(name=name, options=options), 5)
    assert [".".join(map(str, each["loc"])) for each in refused.value.errors()] == paths


def test_a_run_with_wrong_options_ends_before_it_begins(tmp_path: Path) -> None:
    log = read_log(write_small_log(tmp_path / "log.csv"))
    events: list[Event] = []
    config = small_config(backbone={"options": {"gate": 1}})
    with pytest.raises(ValidationError, match=r"backbone\.options\.gate"):
        Run(log, "f" * 64, config, tmp_path / "out", Control(listener=events.append))
    assert events == []


def test_the_command_line_reads_and_refuses_options(tmp_path: Path) -> None:
    log = write_small_log(tmp_path / "log.csv")
    command = ["distill", str(log), "--out", str(tmp_path / "out"), "--set", "backbone.name=hstu"]
    done = CliRunner().invoke(app, [*command, "--set", "backbone.options.places=both"])
    assert done.exit_code == 2
    assert "backbone.options.places: Extra inputs are not permitted" in done.stderr


def test_learners_of_another_backbone_have_settings_of_their_own() -> None:
    config = small_config(backbone={"name": "esasrec", "options": {"gated": False}})
    assert learner_of(config, None) == config == learner_of(config, "esasrec")
    own = backbone_spec("bert4rec").learner
    assert own
    other = learner_of(config, "bert4rec")
    assert (other.backbone.name, other.backbone.options) == ("bert4rec", {})
    assert other.learner == config.learner.model_copy(update=dict(own))
    # A request goes over both; a window of distilling bounds nothing here.
    requested = learner_of(config, "bert4rec", {"steps": 2}).learner
    assert (requested.steps, requested.lr) == (2, own["lr"])
    with pytest.raises(ValidationError, match="step"):
        learner_of(config, "bert4rec", {"step": 2})


@pytest.mark.parametrize("name", BACKBONES)
def test_declared_learner_settings_are_valid(name: str) -> None:
    declared = dict(backbone_spec(name).learner)
    found = LearnerConfig.model_validate(declared)
    assert declared == {key: getattr(found, key) for key in declared}


def test_a_spec_without_learner_settings_has_none() -> None:
    spec = BackboneSpec(build_backbone)
    assert (dict(spec.learner), spec.options) == ({}, BackboneOptions)


def test_a_file_without_a_declaration_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("td3engine.models.backbones.empty")
    module.__file__ = "backbones/empty.py"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(TypeError, match=r"backbones/empty\.py must set BACKBONE"):
        backbone_spec("empty")
