"""Sections of the results page that compare with independent libraries (benchmarks/reference)."""

import json
from pathlib import Path
from typing import Any

from benchmarks.quality_rows import METRIC, PROTOCOL, Rows, one

RESULTS = Path("docs/results")


def recbole_rows() -> Rows:
    """What RecBole measured."""
    return _rows("reference-recbole.json")


def reference_section(rows: Rows) -> str:
    """Both libraries' figures beside ours."""
    sections = [_rectools_section(rows), _recbole_section(rows)]
    found = [section for section in sections if section]
    return "\n\n".join(["## Full data, against independent libraries", *found]) if found else ""


def _rows(name: str) -> Rows:
    path = RESULTS / name
    content = json.loads(path.read_text()) if path.exists() else []
    found: Rows = content["rows"] if isinstance(content, dict) else content
    return found


def _rectools_section(rows: Rows) -> str:
    """For each log and model the setting that is best on validation, its seeds averaged."""
    reference = _rows("reference-rectools.json")
    lines = [
        "### RecTools",
        "",
        "SASRec and eSASRec of RecTools 0.19.0, in an environment of its own, on the same split "
        "and questions; d = 64, two blocks, one thread; the setting with the best validation. "
        "Its seconds are processor seconds, at least those of our network's training; where they "
        "ended a training (`stopped`), more would have helped. NDCG@10 on test.",
        "",
        "| data set | model | `unseen` | `all` | seconds | epochs | stopped | our network "
        "| our teacher |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for dataset, model in dict.fromkeys((row["log"], row["model"]) for row in reference):
        tried = [row for row in reference if (row["log"], row["model"]) == (dataset, model)]
        best = max(tried, key=lambda row: row["validation"][PROTOCOL][METRIC])
        ours = [r for r in rows if r["dataset"] == dataset and r["backbone"] == "sasrec"]
        cells = [_figure(one(ours, source)) for source in ("full", "teacher")]
        lines.append(
            f"| {dataset} | {model}, seed {best['seed']} | {best['test']['unseen'][METRIC]:.4f} | "
            f"{best['test']['all'][METRIC]:.4f} | {best['seconds']:.0f} | {best['epochs']} | "
            f"{best['stopped']} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) if reference else ""


def _recbole_section(rows: Rows) -> str:
    reference = recbole_rows()
    lines = [
        "### RecBole",
        "",
        "The same log, split, widths and protocol in RecBole, NDCG@10 `unseen` on ML-100k. One "
        "test event a user: each figure's standard error is about 0.007.",
        "",
        "| model | ours | RecBole | RecBole, validation | epochs |",
        "|---|---|---|---|---|",
    ]
    for row in reference:
        backbone = row["model"].lower()
        own = [r for r in rows if r["dataset"] == "ml-100k" and r["backbone"] == backbone]
        lines.append(
            f"| {row['model']}, seed {row['seed']} | {_figure(one(own, 'full'))} | "
            f"{row['ndcg@10']:.4f} | {row['validation_ndcg@10']:.4f} | {row['epochs']} |"
        )
    return "\n".join(lines) if reference else ""


def _figure(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    spread = f" ± {row[METRIC + '_std']:.4f}" if row["seeds"] > 1 else ""
    return f"{row[METRIC]:.4f}{spread}"
