#!/usr/bin/env bash
# RecBole's "uni100" for sequential models: own history as negatives, and ties that double the score.
#
# Sequential models must run with `repeatable: True`. Then the 100 "negatives" are drawn by RepeatableSampler.
# Its docstring says that it samples only items "that have not appeared at all phases". It does the opposite:
# the only item it avoids is the target itself. So items of the user's own history are ranked as negatives.
# They are drawn with replacement, and equal draws fall on one cell of the score matrix: fewer than 100 remain.
# Ties are cut by torch.topk in whatever order it has. On the CPU a model that scores EVERYTHING ALIKE gets
# Recall@10 far above the 10/98 of chance: the item numbers follow the file, and that order is not random.
# Whom it hurts: everybody who compares "sampled" figures across libraries or papers, and everybody whose model
# yields ties (counts, popularity, quantised or collapsed scores): a broken model looks twice as good as chance.
# What helps: mode `full`; else draw the negatives yourself, and add a tiny noise to see whether ties matter.
#
# Versions: recbole 1.2.1, torch 2.13.0 (CPU), numpy 1.26.4, pandas 2.2.3, scipy 1.15.3, Python 3.11, ml-100k as
# shipped in the wheel. Seen: 6.3 % of the negatives are the user's own items, 97.0 of 100 are distinct, and
# Recall@10 is 0.24 for the constant scorer against 0.10 for a random one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check \
    recbole==1.2.1 torch==2.13.0 numpy==1.26.4 pandas==2.2.3 scipy==1.15.3
cd "$work" # the library writes its logs where it stands
OMP_NUM_THREADS=1 "$work/env/bin/python" -W ignore - <<'PY'
from collections import defaultdict

import numpy as np
import recbole
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.evaluator import Collector, Evaluator
from recbole.sampler import RepeatableSampler

settings = {
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni100"},
    "train_neg_sample_args": None,
    "use_gpu": False,
    "metrics": ["Recall"],
    "topk": [10],
}
config = Config(model="SASRec", dataset="ml-100k", config_dict=settings)
np.random.seed(0)
torch.manual_seed(0)
dataset = create_dataset(config)
met = defaultdict(set)
for user, item in zip(dataset.inter_feat["user_id"], dataset.inter_feat["item_id"], strict=True):
    met[user].add(item)
_, _, test = data_preparation(config, dataset)

collectors = {"constant": Collector(config), "random": Collector(config)}
drawn = own = 0
distinct = []
for batch, row, positive_u, positive_i in test:
    users, items = batch["user_id"].numpy(), batch["item_id"].numpy()
    negative = batch["label"].numpy() == 0
    for user in np.unique(users):
        sample = items[negative & (users == user)]
        drawn += len(sample)
        own += sum(item in met[user] for item in sample)
        distinct.append(len(set(sample)))
    for name, collector in collectors.items():
        score = torch.zeros(len(items)) if name == "constant" else torch.rand(len(items))
        matrix = torch.full((int(positive_u[-1]) + 1, dataset.item_num), -np.inf)
        matrix[row, batch["item_id"]] = score  # as Trainer._neg_sample_batch_eval does
        collector.eval_batch_collect(matrix, batch, positive_u, positive_i)
recall = {n: Evaluator(config).evaluate(c.get_data_struct())["recall@10"] for n, c in collectors.items()}

print("recbole", recbole.__version__, "torch", torch.__version__)
print("docstring:", " ".join(RepeatableSampler.__doc__.split("\n\n")[0].split()))
print(f"{drawn} negatives for {len(distinct)} questions: {own / drawn:.1%} from the user's own history,")
print(f"{np.mean(distinct):.1f} of 100 distinct; Recall@10 by chance about {10 / (1 + np.mean(distinct)):.3f}")
print("Recall@10:", {name: float(value) for name, value in recall.items()})
assert "not appeared at all phases" in RepeatableSampler.__doc__
assert 0.05 < own / drawn < 0.08, "the user's own items are not drawn as before"
assert np.mean(distinct) < 98, "the negatives are distinct now"
assert recall["random"] < 0.13, "a random scorer is at chance"
assert recall["constant"] > 1.7 * recall["random"], "ties no longer help a constant scorer"
PY
