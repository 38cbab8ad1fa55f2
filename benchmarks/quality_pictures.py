"""The pictures of the quality study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from benchmarks.quality_rows import METRIC, NAMES, Rows, one
from td3engine.config import MODES


def draw_shares(rows: Rows, path: Path) -> None:
    """Share of the full-data figure by data set and source, one panel a mode."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 3.6), sharey=True)
    datasets = list(dict.fromkeys(r["dataset"] for r in rows if r["backbone"] == "sasrec"))
    shown = {"summary": "#1f6f8b", "random": "#b8c4c9", "zero-steps": "#dfe6e9"}
    for panel, mode in zip(panels, MODES, strict=True):
        for nth, (source, colour) in enumerate(shown.items()):
            for place, dataset in enumerate(datasets):
                own = [r for r in rows if r["dataset"] == dataset and r["backbone"] == "sasrec"]
                row, full = one(own, source, mode), one(own, "full")
                if full is not None and row is None and source == "summary":
                    panel.text(place, 2, "not run", ha="center", fontsize=7, color="#888888")
                if row is None or full is None:
                    continue
                label = NAMES[source].strip("*") if place == 0 else None
                panel.bar(
                    place + 0.27 * (nth - 1),
                    100 * row[METRIC] / full[METRIC],
                    0.25,
                    yerr=100 * row[METRIC + "_std"] / full[METRIC],
                    color=colour,
                    label=label,
                    error_kw={"lw": 0.8},
                )
        panel.axhline(100, color="#333333", lw=0.8, ls=":")
        panel.set_xticks(range(len(datasets)), [d.replace("amazon", "amazon\n") for d in datasets])
        panel.set_xlim(-0.5, len(datasets) - 0.5)
        panel.tick_params(axis="x", labelsize=7)
        panel.set_title(mode, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("% of full-data NDCG@10")
    panels[0].legend(frameon=False, fontsize=8, loc="upper left", ncols=3)
    panels[0].set_ylim(0, 120)
    figure.tight_layout()
    figure.savefig(path)


def draw_ablations(rows: Rows, path: Path) -> None:
    """Quality by the number of sequences, and by the time of distilling."""
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.2))
    for dataset in dict.fromkeys(r["dataset"] for r in rows):
        own = [r for r in rows if r["dataset"] == dataset]
        sizes = sorted((r for r in own if r.get("family") == "users"), key=lambda r: r["users"])
        _line(panels[0], dataset, [r["users"] for r in sizes], sizes)
        timed = sorted(
            (r for r in own if r.get("family") == "steps"), key=lambda r: r["distil_seconds"]
        )
        _line(panels[1], dataset, [r["distil_seconds"] for r in timed], timed)
    panels[0].set_xlabel("synthetic sequences")
    panels[1].set_xlabel("seconds of distilling")
    panels[0].set_ylabel("NDCG@10, test")
    for panel in panels:
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def _line(panel: Any, name: str, at: Sequence[float], rows: Rows) -> None:
    heights, errors = [r[METRIC] for r in rows], [r[METRIC + "_std"] for r in rows]
    panel.errorbar(at, heights, errors, marker="o", ms=3, lw=1, capsize=2, label=name)
