#!/usr/bin/env bash
# Cornac's leave-last-out asks about another item when the last one was never trained on.
#
# `NextItemEvaluation.leave_last_out` promises: target = the last item of the user. With the default
# `exclude_unknowns=True` an item that no training sequence holds is cut out of the test sequence, and the
# question is kept as long as two known items are left: it now asks about whatever item stands before. That is
# the validation target, or even an item of the user's own TRAINING sequence. Nothing is printed.
# Whom it hurts: everybody who reports next-item figures on logs with new items. A model that only remembers
# its training data is scored on it, so figures come out too good.
# What helps: drop the users whose last item is unknown before the split, or `exclude_unknowns=False`.
#
# Versions: cornac 3.0.1, numpy 2.4.6, scipy 1.17.1, Python 3.11. Seen: 3 users of 3 are asked; 2 of them about
# another item than their last, 1 of these about an item of its own training sequence.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check cornac==3.0.1 numpy==2.4.6 scipy==1.17.1
"$work/env/bin/python" - <<'PY'
import warnings

import numpy as np

warnings.simplefilter("ignore")
import cornac
from cornac.eval_methods import NextItemEvaluation
from cornac.metrics import HitRatio
from cornac.models import NextItemRecommender

# ann ends on a known item, bob on one new item, eve on two new items.
SEQUENCES = {"ann": "abcba", "bob": "cabcX", "eve": "bcaYZ"}
EVENTS = [(u, i, 1.0, t) for u, items in SEQUENCES.items() for t, i in enumerate(items)]


class Probe(NextItemRecommender):
    """Scores every item alike and notes how long a history each question shows."""

    asked: dict[int, int] = {}

    def score(self, user_idx, history_items, **kwargs):
        self.asked[user_idx] = len(history_items)
        return np.zeros(self.total_items)


method = NextItemEvaluation.leave_last_out(EVENTS, verbose=False)
method.evaluate(Probe("probe"), [HitRatio(k=1)], user_based=False, show_validation=False)
names = {index: user for user, index in method.global_uid_map.items()}
items = {index: item for item, index in method.global_iid_map.items()}
targets = {}
for _, [rows], [sequence] in method.test_set.si_iter(batch_size=1, shuffle=False):
    user = method.test_set.uir_tuple[0][rows[0]]
    targets[names[user]] = items[sequence[Probe.asked[user]]]

print("cornac", cornac.__version__)
for user, sequence in SEQUENCES.items():
    print(f"{user}: trained on {sequence[:-2]}, last item {sequence[-1]}, asked about {targets[user]}")
assert method.exclude_unknowns, "the default of leave_last_out changed"
assert targets == {"ann": "a", "bob": "c", "eve": "a"}, "the questions changed"
assert targets["eve"] in SEQUENCES["eve"][:-2], "eve is asked about her own training item"
PY
