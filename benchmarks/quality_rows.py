"""Rows of the quality study, and which of them a table asks for."""

from collections.abc import Iterable
from typing import Any

Rows = list[dict[str, Any]]
METRIC, PROTOCOL = "ndcg@10", "unseen"  # which the benchmarks' logs call for
NAMES = {
    "teacher": "**teacher** (network and counting models)",
    "full": "**full data** (the network alone)",
    "prefix": "full data, the paper's prefix rows",
    "popularity": "popularity",
    "repeat-rule": "often had, then popular",
    "markov": "Markov",
    "windowed-markov": "windowed Markov",
    "item-knn": "item-kNN",
    "ease": "EASE",
    "zero-steps": "zero steps",
    "summary": "**TD3 summary**",
    "initial": "summary at initialisation",
    "labelled": "labelled users, as many sequences",
    "labelled-bytes": "labelled users, as many bytes",
    "labelled-seconds": "labelled users, as many seconds (at most 1,000)",
    "random": "random users",
    "longest": "longest histories",
    "recent": "most recent windows",
    "hard-export": "hard export of the summary",
    "soft-export": "soft export of the summary",
}


def one(rows: Iterable[dict[str, Any]], source: str, mode: str | None = None) -> Any:
    """The row of this source under the main protocol, if there is one."""
    fits = (
        r
        for r in rows
        if r["source"] == source
        and r["protocol"] == PROTOCOL
        and (mode is None or r["mode"] == mode)
        and r["distilled_with"] in ("sasrec", r["backbone"])
    )
    return next(fits, None)


def same(rows: Rows, row: dict[str, Any], protocol: str) -> Any:
    """The row of the same cell under another protocol."""
    key = ("source", "mode", "backbone", "distilled_with")
    fits = (r for r in rows if r["protocol"] == protocol and all(r[k] == row[k] for k in key))
    return next(fits, None)


def settings_table(configs: dict[str, Any]) -> str:
    """What SASRec's summaries were made with, log by log."""
    lines = [
        "## Settings",
        "",
        "What the default preset settles on for each log (benchmarks/datasets.py; how defaults "
        "were chosen: [notebook](notebook.md)). Of a step's targets: all positions of its "
        "sequences, or the last and some others.",
        "",
        "| data set | mode | sequences | dropout | outer steps (of them for shared items) | window "
        "| outer rate | learner: steps x sequences | targets a sequence |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key, config in configs.items():
        dataset, backbone, mode = key.split()
        if backbone != "sasrec" or mode == "log":
            continue
        summary, learner, outer = config["summary"], config["learner"], config["outer"]
        scratch = mode == "from-scratch"
        shared = outer.get("shared_steps", 0) if scratch else 0
        rate = (outer.get("scratch_lr") if scratch else None) or outer["lr"]
        steps = learner["scratch_steps" if scratch else "steps"]
        everything = learner["objective"] == "all-positions"
        lines.append(
            f"| {dataset} | {mode} | {summary['users']} x {summary['length']} "
            f"| {config['backbone']['dropout']} | {outer['steps']:,}"
            f"{f' ({shared:,})' if shared else ''} | {outer['window']} | {rate} "
            f"| {steps} x {learner['batch']} "
            f"| {'all' if everything else learner['augmented'] + 1} |"
        )
    return "\n".join(lines)
