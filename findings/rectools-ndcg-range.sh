#!/usr/bin/env bash
# RecTools: NDCG@10 of a perfect recommender is 0.22, and NDCG@1 can be 2.
#
# `NDCG(k)` divides by the gain of k relevant items, whatever the user has. With one target per user, the usual
# leave-one-out, the best that can be reached at k=10 is 1 / 4.54 = 0.22 (`divide_by_achievable=False` is the
# default; the docstring says so, the name NDCG does not). And rows of the test table are not made distinct: an
# item that stands twice for a user (a repeated purchase) has its gain counted twice, so NDCG@1 is 2, with
# `divide_by_achievable=True` too. RePlay, RecBole and Cornac divide by what the user can reach.
# Whom it hurts: everybody who puts a RecTools NDCG beside one of another library: a factor of 4.5 at k=10.
# What helps: `divide_by_achievable=True`, and drop_duplicates on user and item before the metric.
#
# Versions: rectools 0.19.0, pandas 2.3.3, numpy 1.26.4, Python 3.11.
# Seen: 0.2201 at k=10 and 1.0 at k=1 for one target ranked first; 2.0 at k=1 when its row stands twice.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check rectools==0.19.0 pandas==2.3.3 numpy==1.26.4
"$work/env/bin/python" -W ignore - <<'PY'
import pandas as pd
import rectools
from rectools import Columns
from rectools.metrics import MRR, NDCG, Recall

recommended = pd.DataFrame({Columns.User: 1, Columns.Item: range(10), Columns.Rank: range(1, 11)})
once = pd.DataFrame({Columns.User: [1], Columns.Item: [0]})  # the one target is ranked first
twice = pd.concat([once, once], ignore_index=True)  # the user took it twice in the test period


def ndcg(k: int, test: pd.DataFrame, **options: bool) -> float:
    return round(float(NDCG(k=k, **options).calc(recommended, test)), 4)


print("rectools", rectools.__version__)
print("one target, first:  NDCG@10", ndcg(10, once), "NDCG@1", ndcg(1, once))
print("same, achievable:   NDCG@10", ndcg(10, once, divide_by_achievable=True))
print("the target twice:   NDCG@10", ndcg(10, twice), "NDCG@1", ndcg(1, twice))
print("same, achievable:   NDCG@1", ndcg(1, twice, divide_by_achievable=True))
print("MRR@10", MRR(k=10).calc(recommended, once), "Recall@10", Recall(k=10).calc(recommended, once))
assert ndcg(10, once) == 0.2201, "a perfect ranking of one target scores another value"
assert ndcg(10, once, divide_by_achievable=True) == 1.0
assert ndcg(1, twice) == 2.0, "a repeated target is counted once now"
assert ndcg(1, twice, divide_by_achievable=True) == 2.0
PY
