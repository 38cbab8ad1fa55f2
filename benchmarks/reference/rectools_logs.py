"""An independent reference: RecTools trains SASRec and eSASRec on all of any log.

Like `recbole_ml100k.py`, this script takes nothing from the project. `questions.py` beside it
reads, filters and splits the log and ranks; models, losses and training are RecTools 0.19.0's.
RecTools is never a dependency of the project. It gets a virtual environment of its own; in the
repository's root:

    python3.11 -m venv reference-env
    reference-env/bin/pip install -r benchmarks/reference/requirements-rectools.txt
    reference-env/bin/python -m benchmarks.reference.rectools_logs --data ml-1m.csv.gz \
        --models sasrec,esasrec --settings light,heavy --minutes 8 --json OUT.json

`--data` is a CSV (.csv or .csv.gz) with user_id, item_id and timestamp, or RecBole's ml-100k.inter.
Finished rows in OUT are kept, so an interrupted run goes on with what is missing.

The models: `sasrec` is RecTools' own layers, `esasrec` its LiGR layers with key padding masked
(as in the configurations of its paper, arXiv 2508.06450; the library's default leaves padding
unmasked). `paper` has the sizes of the paper's Beauty. RecTools was led, in three places:

- It pads every history to `session_max_len`: of Beauty's positions six in seven are padding.
  `bucketed` makes batches of similar lengths and cuts the padding that a whole batch shares. With
  key padding masked the model is the same (`check_scores` compares with `recommend`, which pads),
  so `sasrec` has it masked as well.
- Its softmax loss runs over strided items; `quick_softmax` has the same value in less time.
- It trains on a user's last `session_max_len` + 1 events only. `--windows` gives it each user's
  training events in pieces of that length, so that every transition is trained on once an epoch.

What it trains on and what it recommends are checked against the split and the scores here. Minutes
and seconds are the processor's, so what else the machine does is not counted as waiting.
"""

import argparse
import importlib
import importlib.metadata
import json
import logging
import platform
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.reference.questions import Question, Split, metrics, pieces, ranks, read_log, split

SETTINGS: dict[str, dict[str, Any]] = {
    "light": {"n_factors": 64, "n_blocks": 2, "n_heads": 1, "dropout_rate": 0.2},
    "heavy": {"n_factors": 64, "n_blocks": 2, "n_heads": 1, "dropout_rate": 0.5},
    "paper": {"n_factors": 64, "n_blocks": 1, "n_heads": 1, "dropout_rate": 0.2},
}
MODELS = ("sasrec", "esasrec")

Row = dict[str, Any]


@dataclass
class Scorer:
    """Scores of all items of the log by a RecTools model, -inf for those it never trained on."""

    model: Any
    items: int
    # RecTools' number of each item; 0, its padding, for an item that it does not know.
    code: Tensor = field(init=False)

    def __post_init__(self) -> None:
        prepared = self.model.data_preparator
        known = torch.as_tensor(prepared.get_known_item_ids().astype(int))
        self.code = torch.zeros(self.items, dtype=torch.long)
        self.code[known] = torch.as_tensor(prepared.get_known_items_sorted_internal_ids())

    @torch.no_grad()
    def __call__(self, histories: list[list[int]]) -> Tensor:
        """Histories x items. A user of whom no item is known gets no recommendation in RecTools:
        here, all items tie."""
        numbers = self.code.tolist()
        coded = [[numbers[i] for i in history if numbers[i]] for history in histories]
        coded = [codes[-self.model.session_max_len :] for codes in coded]
        length = max(1, *map(len, coded))
        x = torch.tensor([[0] * (length - len(codes)) + codes for codes in coded])
        network = self.model.torch_model.eval()
        table = network.item_model.get_all_embeddings()
        state = network.encode_sessions({"x": x}, table)[:, -1]
        scores: Tensor = network.similarity_module(state, table[self.code])
        if not torch.isfinite(scores).all():
            raise ValueError("a score is not a finite number")
        scores.masked_fill_(self.code == 0, -torch.inf)
        scores.masked_fill_(x[:, -1:] == 0, -torch.inf)
        return scores

    def measure(self, questions: list[Question], protocols: list[str]) -> dict[str, Any]:
        """Metrics by protocol."""
        found: dict[str, list[int]] = {protocol: [] for protocol in protocols}
        ordered = sorted(questions, key=lambda question: len(question[0]))
        for start in range(0, len(ordered), 512):
            batch = ordered[start : start + 512]
            scores = self([history for history, _ in batch])
            for protocol in protocols:
                found[protocol] += ranks(scores, batch, protocol)
        return {protocol: metrics(found[protocol]) for protocol in protocols}


def dataset_of(sequences: list[list[int]]) -> Any:
    """RecTools' dataset, with an event's place within its sequence as the time in seconds."""
    pandas = importlib.import_module("pandas")
    events = [(n, i, rank) for n, items in enumerate(sequences) for rank, i in enumerate(items)]
    table = pandas.DataFrame(events, columns=["user_id", "item_id", "datetime"])
    table["datetime"] = pandas.to_datetime(table["datetime"], unit="s")
    table["weight"] = 1.0
    return importlib.import_module("rectools.dataset").Dataset.construct(table)


@dataclass
class Buckets:
    """Batches of sequences of similar lengths, drawn anew each epoch."""

    lengths: Tensor
    batch: int

    def __iter__(self) -> Iterator[list[int]]:
        batches: list[list[int]] = []
        for pool in torch.randperm(len(self.lengths)).split(16 * self.batch):
            ordered = pool[self.lengths[pool].argsort(stable=True)]
            batches += [part.tolist() for part in ordered.split(self.batch)]
        yield from (batches[n] for n in torch.randperm(len(batches)).tolist())

    def __len__(self) -> int:
        pools = torch.arange(len(self.lengths)).split(16 * self.batch)
        return sum(len(pool.split(self.batch)) for pool in pools)


def bucketed(prepared: Any, sequences: list[list[int]]) -> Callable[[], Any]:
    """What makes the training batches in place of RecTools' own loader.

    The loader raises ValueError if RecTools does not train on `sequences`.
    """

    def collate(batch: list[Any]) -> dict[str, Tensor]:
        made: dict[str, Tensor] = prepared._collate_fn_train(batch)
        longest = int((made["x"] > 0).sum(dim=1).max())
        return {name: value[:, -longest:] for name, value in made.items()}

    def loader() -> Any:
        module = importlib.import_module("rectools.models.nn.transformers.data_preparator")
        data = module.SequenceDataset.from_interactions(prepared.train_dataset.interactions.df)
        external = prepared.item_id_map.get_external_sorted_by_internal()
        given = Counter(tuple(external[n] for n in session) for session in data.sessions)
        longest = prepared.session_max_len + 1
        if given != Counter(tuple(items[-longest:]) for items in sequences if len(items) >= 2):
            raise ValueError("RecTools trains on other events than the split's")
        lengths = torch.tensor([len(session) for session in data.sessions])
        buckets = Buckets(lengths, prepared.batch_size)
        return torch.utils.data.DataLoader(data, batch_sampler=buckets, collate_fn=collate)

    return loader


def quick_softmax(module: Any) -> None:
    """Compute the softmax loss with the items last in memory.

    Raises:
        ValueError: its value is not that of RecTools' own.
    """

    def loss(logits: Tensor, y: Tensor, w: Tensor) -> Tensor:
        rows = logits.flatten(0, 1), y.flatten()
        each = torch.nn.functional.cross_entropy(*rows, ignore_index=0, reduction="none")
        each *= w.flatten()
        return each.sum() / (each > 0).sum()

    generator = torch.Generator().manual_seed(1)  # the run's own draws stay as they are
    logits = torch.randn(3, 4, 7, generator=generator)
    y = torch.randint(7, (3, 4), generator=generator)
    w = torch.rand(3, 4, generator=generator)
    if not torch.allclose(loss(logits, y, w), module._calc_softmax_loss(logits, y, w)):
        raise ValueError("the quick softmax loss is not RecTools'")
    module.loss_calculator = loss


def check_scores(scorer: Scorer, questions: list[Question]) -> None:
    """RecTools' own recommendations must have the scores that are ranked here.

    Raises:
        ValueError: they have not.
    """
    histories = [met for met, _ in questions[:200] if int(scorer.code[met].sum())]
    made = scorer.model.recommend(
        users=list(range(len(histories))), dataset=dataset_of(histories), k=10, filter_viewed=True
    )
    scores = scorer(histories)
    for row, history in enumerate(histories):
        scores[row, history] = -torch.inf
    users, items = (torch.as_tensor(made[name].to_numpy()) for name in ("user_id", "item_id"))
    theirs = torch.as_tensor(made["score"].to_numpy()).reshape(-1, 10)
    ours = scores[users, items].reshape(-1, 10)
    best = scores.topk(10).values
    if not (torch.allclose(ours, theirs, atol=1e-4) and torch.allclose(ours, best, atol=1e-4)):
        raise ValueError("RecTools recommends by other scores than the ones ranked here")


def make_model(name: str, settings: Row) -> Any:
    """An unfitted model of RecTools."""
    kinds: Row = {}
    if name == "esasrec":
        ligr = importlib.import_module("rectools.models.nn.transformers.ligr")
        kinds["transformer_layers_type"] = ligr.LiGRLayers
    return importlib.import_module("rectools.models").SASRecModel(
        **kinds, **settings["model"], use_key_padding_mask=True, recommend_torch_device="cpu"
    )


@dataclass
class Best:
    """The best state on validation, within the minutes. Seconds are the processor's."""

    cut: Split
    scorer: Callable[[], Scorer]
    minutes: float
    patience: int
    score: float = -1.0
    epoch: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    stopped: str = "epochs"
    checked: float = 0.0
    checking: float = 0.0
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)
    start: float = field(default_factory=time.process_time)
    wall_start: float = field(default_factory=time.perf_counter)

    def __call__(self, trainer: Any, module: Any) -> None:
        """After every epoch. Validates when training has taken nine times a validation since."""
        now = time.process_time() - self.start
        over = now > 60 * self.minutes
        if now - self.checked < 9 * self.checking and not over:
            return
        measured = self.scorer().measure(self.cut.validation, [self.cut.protocol])
        score = measured[self.cut.protocol]["ndcg@10"]
        module.torch_model.train()
        self.seconds = self.checked = time.process_time() - self.start
        self.wall_seconds = time.perf_counter() - self.wall_start
        self.checking = self.seconds - now
        epoch = trainer.current_epoch + 1
        self.curve.append((epoch, round(self.seconds, 1), score))
        print(f"  epoch {epoch:3}  {self.seconds:6.1f} s  NDCG@10 {score:.4f}", flush=True)
        if score > self.score:
            self.score, self.epoch = score, epoch
            self.state = {k: v.clone() for k, v in module.torch_model.state_dict().items()}
        stale = sum(later > self.epoch for later, _, _ in self.curve) >= self.patience
        if over or stale:
            self.stopped = "minutes" if over else "patience"
            trainer.should_stop = True


def train(name: str, seed: int, settings: Row, minutes: float, cut: Split) -> Row:
    """Train one model once and measure its best state."""
    lightning = importlib.import_module("pytorch_lightning")
    lightning.seed_everything(seed)
    model = make_model(name, settings)
    sequences = cut.training
    if settings["windows"]:
        sequences = [part for items in sequences for part in pieces(items, model.session_max_len)]
    model.data_preparator.get_dataloader_train = bucketed(model.data_preparator, sequences)
    best = Best(cut, lambda: Scorer(model, cut.items), minutes, settings["patience"])

    # RecTools trains with a deep copy of the trainer: a function stays what it is, `best` does not.
    def before_training(_trainer: Any, module: Any) -> None:
        if module.loss == "softmax":
            quick_softmax(module)

    def after_epoch(trainer: Any, module: Any) -> None:
        best(trainer, module)

    calls = {"on_train_start": before_training, "on_train_epoch_end": after_epoch}
    model._trainer = lightning.Trainer(
        max_epochs=settings["max_epochs"],
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[lightning.callbacks.LambdaCallback(**calls)],
    )
    model.fit(dataset_of(sequences))
    model.torch_model.load_state_dict(best.state)
    scorer = Scorer(model, cut.items)
    check_scores(scorer, cut.test)
    return {
        "test": scorer.measure(cut.test, ["all", "unseen"]),
        "validation": scorer.measure(cut.validation, ["all", "unseen"]),
        "chosen_by": cut.protocol,
        "repeats": round(cut.repeats, 4),
        "items": cut.items,
        "items_known": int((scorer.code > 0).sum()),
        "seconds": round(best.seconds, 1),
        "wall_seconds": round(best.wall_seconds, 1),
        "seconds_to_best": next(s for epoch, s, _ in best.curve if epoch == best.epoch),
        "epochs": best.curve[-1][0],
        "best_epoch": best.epoch,
        "stopped": best.stopped,
        "parameters": sum(p.numel() for p in model.torch_model.parameters()),
        "validation_curve": best.curve,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What computed a row."""
    names = ("rectools", "pytorch-lightning", "numpy", "pandas")
    found = {name: importlib.metadata.version(name) for name in names}
    return {**found, "torch": torch.__version__, "python": platform.python_version()}


# ---- the command


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a log")
    parser.add_argument("--json", type=Path, required=True, help="finished rows are kept here")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--settings", default="light,heavy", help=f"of {', '.join(SETTINGS)}")
    parser.add_argument("--seeds", default="1", help="comma-separated")
    parser.add_argument("--loss", default="softmax", choices=("softmax", "sampled_softmax", "gBCE"))
    parser.add_argument("--negatives", type=int, default=256, help="unless the loss is softmax")
    parser.add_argument("--length", type=int, default=50, help="of a history, in events")
    parser.add_argument("--windows", action="store_true", help="train on all of a long history")
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--batch", type=int, default=128, help="sequences")
    parser.add_argument("--max-epochs", type=int, default=1000)
    parser.add_argument("--patience", type=int, default=10, help="validations")
    parser.add_argument(
        "--minutes",
        type=float,
        default=8.0,
        help="of the processor, for one training with its validations; looked at after each epoch",
    )
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def settings_of(asked: argparse.Namespace, name: str) -> Row:
    """All that one training is told."""
    sampled = {} if asked.loss == "softmax" else {"n_negatives": asked.negatives}
    return {
        "name": name,
        "model": {
            **SETTINGS[name],
            **sampled,
            "loss": asked.loss,
            "session_max_len": asked.length,
            "lr": asked.lr,
            "batch_size": asked.batch,
        },
        "windows": asked.windows,
        "max_epochs": asked.max_epochs,
        "patience": asked.patience,
    }


def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    cut = split(read_log(asked.data))
    log = asked.data.name.partition(".")[0]
    rows: list[Row] = json.loads(asked.json.read_text())["rows"] if asked.json.exists() else []
    for seed in [int(text) for text in asked.seeds.split(",")]:
        for setting in asked.settings.split(","):
            for name in asked.models.split(","):
                key = {
                    "log": log,
                    "model": name,
                    "seed": seed,
                    "minutes": asked.minutes,
                    "settings": settings_of(asked, setting),
                }
                if any(key.items() <= row.items() for row in rows):
                    continue
                print(log, name, setting, "seed", seed, flush=True)
                rows.append({**key, **train(name, seed, key["settings"], asked.minutes, cut)})
                tested = rows[-1]["test"][cut.protocol]
                print(f"  test NDCG@10 {tested['ndcg@10']:.4f} ({cut.protocol})", flush=True)
                part = asked.json.with_suffix(".part")
                part.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
                part.replace(asked.json)


if __name__ == "__main__":
    main()
