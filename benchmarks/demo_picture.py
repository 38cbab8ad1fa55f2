"""Draw the README's picture from a demo's result: python -m benchmarks.demo_picture RESULT OUT.svg

No figure is typed: bars, error bars and labels come from result.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from td3engine.counting.fitting import FAMILIES
from td3engine.evaluation.table import FULL_DATA, SUMMARY, TEACHER

PROTOCOLS = ("unseen", "full")  # today's name, and that of results of earlier releases
COLOURS = {SUMMARY: "#1f6f8b", FULL_DATA: "#333333", TEACHER: "#333333"}
OTHER = "#b8c4c9"
OF_LOG = (TEACHER, FULL_DATA, *FAMILIES)


def main() -> None:
    result, target = Path(sys.argv[1]), Path(sys.argv[2])
    content: dict[str, Any] = json.loads(result.read_text())
    rows = [row for row in content["rows"] if row["protocol"] in PROTOCOLS]
    full = next(row for row in rows if row["name"] == FULL_DATA)
    bars = len({row["name"] for row in rows})
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 1.3 + 0.32 * bars), sharex=True)
    for panel, mode in zip(panels, ("shared-items", "from-scratch"), strict=True):
        of_log = [row for row in rows if row["name"] in OF_LOG]
        own = [row for row in rows if row["mode"] == mode and row not in of_log]
        shown = [*of_log, *own][::-1]
        names = [row["name"] for row in shown]
        values = [row["ndcg@10"] for row in shown]
        errors = [row["ndcg@10_std"] for row in shown]
        panel.barh(names, values, xerr=errors, color=[COLOURS.get(n, OTHER) for n in names])
        for place, (value, error) in enumerate(zip(values, errors, strict=True)):
            share = f"{value:.3f} ({value / full['ndcg@10']:.0%})"
            panel.text(value + error + 0.002, place, share, va="center", fontsize=8)
        panel.set_title(f"learners: {mode}", fontsize=10)
        panel.set_xlabel(f"test NDCG@10, protocol {full['protocol']}", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlim(0, max(row["ndcg@10"] for row in rows) * 1.35)
        panel.tick_params(labelsize=9)
    data, size = content["dataset"], content["config"]["summary"]
    figure.suptitle(
        f"{data['name']}: {data['interactions']:,} interactions against "
        f"{size['users']} synthetic sequences of {size['length']}",
        fontsize=11,
    )
    figure.tight_layout()
    # Without a date or random ids, so that the same result gives the same file.
    plt.rcParams["svg.hashsalt"] = "td3"
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
