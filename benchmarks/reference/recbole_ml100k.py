"""An independent reference: RecBole trains four recommenders on all of MovieLens-100k.

The project's full-data rows come from its own reader, split, models, trainer and metrics; an error
in any of them would move every table. This script takes nothing from the project. It reads the log
in plain Python and leaves models, training and metrics to RecBole 1.2.1, under the project's
protocol: users and items with at least 5 interactions in the raw log, ties in time in file order,
the last event of a user for test and the one before it for validation, histories of 50, ranking
among all items that the user has not met, early stopping on validation NDCG@10.

RecBole is never a dependency of the project. It gets a virtual environment of its own:

    python3.11 -m venv reference-env
    reference-env/bin/pip install -r benchmarks/reference/requirements.txt
    reference-env/bin/pip install --no-deps recbole==1.2.1
    reference-env/bin/python benchmarks/reference/recbole_ml100k.py \
        --data ml-100k.inter --models SASRec,GRU4Rec,BERT4Rec,NARM --seeds 1 --json OUT.json

(the log is `recbole/dataset_example/ml-100k/ml-100k.inter` in the wheel). Finished rows in OUT are
kept, so an interrupted run goes on with the models and seeds that are missing.

Where RecBole had to be led to the protocol, because its defaults are something else:

- It keeps times as 32-bit floats, in which the seconds of this log are 64 apart: as it is, 150 of
  the 943 users would have another test target. So it is given each event's rank within its user as
  the time, and the split that it makes of that is checked against ours before training.
- Its full ranking masks *nothing* for sequential models: items that the user has met compete with
  the target. `full_ranking` gives it the items to mask. What the same trained model reaches under
  RecBole's own ranking is kept in the row as `unmasked`, for comparison with published figures.
- Importing its models turns autograd's anomaly detection on, which is slow; it is turned off.
- `stopping_step` n stops after n + 1 validations without improvement.

What remains different from the project by design: RecBole trains on every prefix of a history as a
row of its own (96,458 rows), with a loss at the last position only. Its SASRec and BERT4Rec are
BERT's encoder (normalisation after each block and on the embeddings).
"""

import argparse
import contextlib
import csv
import importlib
import importlib.metadata
import json
import logging
import platform
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

CUTOFFS = (5, 10, 20)
HISTORY = 50
LEAST = 5
# Users, items and interactions of MovieLens-100k after the filter.
EXPECTED = (943, 1349, 99287)
TRANSFORMER = {
    "hidden_size": 32,
    "n_layers": 1,
    "n_heads": 1,
    "inner_size": 64,
    "hidden_dropout_prob": 0.2,
    "attn_dropout_prob": 0.2,
    "hidden_act": "gelu",
}
RECURRENT = {"embedding_size": 32, "hidden_size": 64}
MODELS: dict[str, dict[str, Any]] = {
    "SASRec": TRANSFORMER,
    "GRU4Rec": {**RECURRENT, "num_layers": 1, "dropout_prob": 0.2},
    "BERT4Rec": {**TRANSFORMER, "mask_ratio": 0.2},
    "NARM": {**RECURRENT, "n_layers": 1, "dropout_probs": [0.2, 0.2]},
}

Metrics = dict[str, float]
Row = dict[str, Any]


class OutOfTimeError(Exception):
    """The minutes of one training are used up; its best state so far is what counts."""


# ---- the log, in plain Python


def read_histories(path: Path) -> dict[str, list[str]]:
    """Item ids of every user that stays, oldest first.

    Raises:
        ValueError: this is not MovieLens-100k, or a user met an item twice (which the masking of
            items met before the target does not provide for).
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file, delimiter="\t")
        header = [name.partition(":")[0] for name in next(rows)]
        user, item, moment = (header.index(n) for n in ("user_id", "item_id", "timestamp"))
        events = [(row[user], row[item], float(row[moment])) for row in rows]
    of_user = Counter(event[0] for event in events)
    of_item = Counter(event[1] for event in events)
    kept = [e for e in events if of_user[e[0]] >= LEAST and of_item[e[1]] >= LEAST]
    histories: dict[str, list[str]] = {}
    # A stable sort: ties keep their order in the file.
    for name, met, _ in sorted(kept, key=lambda event: event[2]):
        histories.setdefault(name, []).append(met)
    found = (len(histories), len({event[1] for event in kept}), len(kept))
    if found != EXPECTED:
        raise ValueError(f"users, items, interactions are {found}, not {EXPECTED}")
    if any(len(set(items)) < len(items) for items in histories.values()):
        raise ValueError("a user met an item twice")
    return histories


def write_atomic(histories: dict[str, list[str]], folder: Path, name: str) -> None:
    """The log in RecBole's format, with the rank within the user as the time."""
    target = folder / name / f"{name}.inter"
    target.parent.mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, items in histories.items():
        lines += [f"{user}\t{item}\t{rank}" for rank, item in enumerate(items)]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


# ---- RecBole


def full_ranking(dataset: Any, histories: dict[str, list[str]]) -> Callable[[Any], Any]:
    """What to mask: for a batch of questions, (row, item) of everything met before the target."""
    coded = {
        dataset.token2id("user_id", user): torch.as_tensor(dataset.token2id("item_id", items))
        for user, items in histories.items()
    }

    def met_before(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        rows, items = [], []
        users, targets = batch["user_id"].tolist(), batch["item_id"].tolist()
        for row, (user, target) in enumerate(zip(users, targets, strict=True)):
            history = coded[user]
            before = history[: int((history == target).nonzero())]
            rows.append(torch.full_like(before, row))
            items.append(before)
        return torch.cat(rows), torch.cat(items)

    return met_before


def check_split(loaders: tuple[Any, Any, Any], dataset: Any, histories: dict[str, Any]) -> None:
    """RecBole's split must be the project's, event by event: it is the half of the protocol.

    Raises:
        ValueError: it is not.
    """
    train, *held_out = loaders
    rows = sum(len(items) - 3 for items in histories.values())
    if len(train.dataset) != rows:
        raise ValueError(f"RecBole trains on {len(train.dataset)} rows, not {rows}")
    for back, loader in zip((2, 1), held_out, strict=True):
        asked = loader.dataset.inter_feat
        if len(asked) != len(histories):
            raise ValueError("RecBole does not ask one question a user")
        for user, target, listed, length in zip(
            dataset.id2token("user_id", asked["user_id"]),
            dataset.id2token("item_id", asked["item_id"]),
            asked["item_id_list"],
            asked["item_length"].tolist(),
            strict=True,
        ):
            items = histories[user]
            history = items[max(0, len(items) - back - HISTORY) : -back]
            if target != items[-back] or history != [*dataset.id2token("item_id", listed[:length])]:
                raise ValueError(f"RecBole asks user {user} something else")


def named(result: dict[str, float], prefix: str = "") -> Metrics:
    """RecBole's metrics under the project's names (it says hit for hr)."""
    return {
        f"{prefix}{ours}@{k}": round(float(result[f"{theirs}@{k}"]), 6)
        for ours, theirs in (("hr", "hit"), ("ndcg", "ndcg"), ("mrr", "mrr"))
        for k in CUTOFFS
    }


@dataclass
class Best:
    """The best state on validation, kept in memory: RecBole's checkpoints pickle its objects,
    which torch no longer loads."""

    trainer: Any
    minutes: float
    score: float = -1.0
    epoch: int = 0
    epochs: int = 0
    seconds: float = 0.0
    start: float = field(default_factory=time.perf_counter)
    curve: list[tuple[int, float]] = field(default_factory=list)
    state: dict[str, torch.Tensor] = field(default_factory=dict)

    def __call__(self, epoch: int, score: float) -> None:
        """RecBole calls this after every validation."""
        self.epochs = epoch + 1
        self.seconds = time.perf_counter() - self.start
        self.curve.append((self.epochs, round(float(score), 6)))
        print(f"  epoch {self.epochs:3}  {self.seconds:6.0f} s  NDCG@10 {score:.4f}", flush=True)
        if score > self.score:
            self.score, self.epoch = score, self.epochs
            self.state = {k: v.clone() for k, v in self.trainer.model.state_dict().items()}
        if self.seconds > 60 * self.minutes:
            raise OutOfTimeError


def train(
    name: str, seed: int, settings: Row, minutes: float, histories: dict[str, list[str]]
) -> Row:
    """Train one model once and measure its best state. Works in the current folder."""
    configuration, data = (importlib.import_module(f"recbole.{m}") for m in ("config", "data"))
    utils = importlib.import_module("recbole.utils")
    config = configuration.Config(
        model=name,
        dataset="filtered",
        config_dict={
            **settings["model"],
            "data_path": str(Path.cwd()),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": HISTORY,
            "loss_type": "CE",
            "train_neg_sample_args": None,
            "eval_args": {
                "split": {"LS": "valid_and_test"},
                "group_by": "user",
                "order": "TO",
                "mode": "full",
            },
            "metrics": ["NDCG", "Hit", "MRR"],
            "topk": list(CUTOFFS),
            "valid_metric": "NDCG@10",
            "metric_decimal_place": 10,
            "learner": "adam",
            "learning_rate": settings["lr"],
            "train_batch_size": settings["batch"],
            "epochs": settings["max_epochs"],
            "eval_step": settings["validate_every"],
            "stopping_step": settings["patience"] - 1,
            "seed": seed,
            "use_gpu": False,
            "gpu_id": "",
            "show_progress": False,
        },
    )
    utils.init_seed(seed, reproducibility=True)
    dataset = data.create_dataset(config)
    loaders = data.data_preparation(config, dataset)
    training, validation, test = loaders
    check_split(loaders, dataset, histories)
    utils.init_seed(seed, reproducibility=True)
    model = utils.get_model(name)(config, training.dataset)
    torch.autograd.set_detect_anomaly(False)
    trainer = utils.get_trainer(config["MODEL_TYPE"], name)(config, model)

    met_before, rank = full_ranking(dataset, histories), trainer._full_sort_batch_eval
    trainer._full_sort_batch_eval = lambda asked: rank((asked[0], met_before(asked[0]), *asked[2:]))
    best = Best(trainer, minutes)
    stopped = "patience"
    try:
        trainer.fit(training, validation, verbose=False, saved=False, callback_fn=best)
    except OutOfTimeError:
        stopped = "minutes"
    if best.epochs == settings["max_epochs"]:
        stopped = "epochs"
    model.load_state_dict(best.state)
    row: Row = {"model": name, "seed": seed}
    row |= named(trainer.evaluate(test, load_best_model=False))
    row |= named(trainer.evaluate(validation, load_best_model=False), "validation_")
    trainer._full_sort_batch_eval = rank
    unmasked = named(trainer.evaluate(test, load_best_model=False))
    return row | {
        "unmasked": unmasked,
        "seconds": round(best.seconds, 1),
        "epochs": best.epochs,
        "best_epoch": best.epoch,
        "stopped": stopped,
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation_curve": best.curve,
        "settings": settings,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What computed a row."""
    found = {name: importlib.metadata.version(name) for name in ("recbole", "numpy", "pandas")}
    return {**found, "torch": torch.__version__, "python": platform.python_version()}


# ---- the command


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="ml-100k.inter")
    parser.add_argument("--json", type=Path, required=True, help="finished rows are kept here")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seeds", default="1", help="comma-separated")
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--max-epochs", type=int, default=40)
    parser.add_argument("--validate-every", type=int, default=2, help="epochs")
    parser.add_argument("--patience", type=int, default=5, help="validations")
    parser.add_argument(
        "--minutes",
        type=float,
        default=60.0,
        help="for one training; looked at after each validation",
    )
    parser.add_argument("--bert-layers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked.threads)
    # What is deprecated in RecBole's use of pandas and torch is known, and the versions are pinned.
    warnings.simplefilter("ignore", FutureWarning)
    logging.disable(logging.WARNING)
    histories = read_histories(asked.data)
    target = asked.json.resolve()
    rows: list[Row] = json.loads(target.read_text())["rows"] if target.exists() else []
    for seed in [int(text) for text in asked.seeds.split(",")]:
        for name in asked.models.split(","):
            layers = {"n_layers": asked.bert_layers} if name == "BERT4Rec" else {}
            settings = {
                "model": {**MODELS[name], **layers},
                "lr": asked.lr,
                "batch": asked.batch,
                "max_epochs": asked.max_epochs,
                "validate_every": asked.validate_every,
                "patience": asked.patience,
            }
            if any((r["model"], r["seed"], r["settings"]) == (name, seed, settings) for r in rows):
                continue
            print(name, "seed", seed, flush=True)
            # RecBole leaves logs and TensorBoard files in the current folder.
            with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
                write_atomic(histories, Path(folder), "filtered")
                rows.append(train(name, seed, settings, asked.minutes, histories))
            row = rows[-1]
            print(f"  test NDCG@10 {row['ndcg@10']:.4f}  HR@10 {row['hr@10']:.4f}", flush=True)
            part = target.with_suffix(".part")
            part.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
            part.replace(target)


if __name__ == "__main__":
    main()
