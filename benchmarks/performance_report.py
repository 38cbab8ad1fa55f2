"""Tables and plots of docs/performance.md: python -m benchmarks.performance_report

Writes what stands between the page's markers, and the pictures, from speed.json, memory.json,
side_by_side.json and gpu.json in docs/results. No figure is typed by hand.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from benchmarks.quality_report import put
from td3engine.config import MODES

RESULTS = Path("docs/results")
PAGE = Path("docs/performance.md")
PARTS = ["soft sequences", "warm-up", "window", "real batch", "reverse", "rest"]
COLOURS = {"shared-items": "#1f6f8b", "from-scratch": "#c26a3d"}
MIB_A_NUMBER = 4 / 2**20  # float32
LIMIT_MIB = 6 * 1024

Run = dict[str, Any]
Rows = list[dict[str, Any]]


def main() -> None:
    """Write tables and pictures of what has been measured."""
    runs: dict[str, Run] = json.loads((RESULTS / "speed.json").read_text())
    memory = json.loads((RESULTS / "memory.json").read_text())
    ends = {command: run for command, run in runs.items() if "ratio_of_distilling" in run}
    steps = {command: run for command, run in runs.items() if command not in ends}
    put(PAGE, "speed", speed_table(steps))
    put(PAGE, "parts", parts_table(steps))
    put(PAGE, "limit", limit_table(steps))
    put(PAGE, "end to end", end_table(ends))
    put(PAGE, "memory", catalogue_table(memory))
    put(PAGE, "window", window_table(memory))
    put(PAGE, "side by side", side_table(json.loads((RESULTS / "side_by_side.json").read_text())))
    gpu = json.loads((RESULTS / "gpu.json").read_text())
    put(PAGE, "gpu", gpu_table(gpu))
    gpu_picture(gpu, RESULTS / "gpu.svg")
    catalogue_picture(memory["rows"], RESULTS / "memory.svg")
    if _of(memory["rows"], "window"):
        window_picture(memory["rows"], RESULTS / "window.svg")


def speed_table(runs: dict[str, Run]) -> str:
    lines = [
        "| items | W | threads | engine, s a step | textbook, s a step | ratio (each repeat) "
        "| of processor seconds | engine, peak MiB | textbook, peak MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs.values():
        engine, textbook = run["engine"], run.get("textbook")
        each = ", ".join(f"{ratio:.1f}" for ratio in run.get("ratios", []))
        ratio, processor = "-", "-"
        if textbook:
            ratio = f"**{run['ratio']:.1f}** ({each})"
            processor = f"{run['ratio_of_processor_seconds']:.1f}"
        lines.append(
            f"| {_log(run)} | {run['settings']['outer']['window']} | {run['machine']['threads']} | "
            f"{_spread(engine)} | {_spread(textbook) if textbook else '-'} | "
            f"{ratio} | {processor} | "
            f"{engine['peak_mib']:,.0f} | {_mib(textbook) if textbook else '-'} |"
        )
    return "\n".join([*lines, "", _how(runs)])


def parts_table(runs: dict[str, Run]) -> str:
    lines = [f"| items | W | threads | side | {' | '.join(PARTS)} |", "|---" * 10 + "|"]
    for run in runs.values():
        for side in ("engine", "textbook"):
            if side not in run:
                continue
            parts = run[side]["parts"]
            cells = [f"{1000 * parts[part]:,.0f}" if part in parts else "-" for part in PARTS]
            lines.append(
                f"| {_log(run)} | {run['settings']['outer']['window']} | "
                f"{run['machine']['threads']} | {side} | {' | '.join(cells)} |"
            )
    return "\n".join(lines)


def limit_table(runs: dict[str, Run]) -> str:
    lines = [
        "| items | W | threads | Gflop a step: window, reverse, real batch, X and back "
        "| large products, Gflop/s | a layer's products, Gflop/s | s at the limit | engine |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs.values():
        bound = run["arithmetic"]
        count = {part: value / 1e9 for part, value in bound["operations"].items()}
        lines.append(
            f"| {_log(run)} | {run['settings']['outer']['window']} | {run['machine']['threads']} | "
            f"{count['window']:.2f}, {count['reverse']:.2f}, {count['real_batch']:.2f}, "
            f"{count['soft_sequences'] + count['rest']:.2f} | {bound['gflops']:.0f} | "
            f"{bound['gflops_of_a_layer']:.0f} | {bound['seconds_at_the_limit']:.3f} | "
            f"**{100 * bound['share_of_the_limit']:.0f}%** of it |"
        )
    return "\n".join(lines)


def end_table(runs: dict[str, Run]) -> str:
    if not runs:
        return "Not run yet."
    lines = [
        "| | best validation NDCG@10 | seconds of distilling to it |",
        "|---|---|---|",
    ]
    notes = []
    for command, run in runs.items():
        engine, textbook, teacher = run["engine"], run["textbook"], run["teacher"]
        to_best = next(at for at, value in textbook["looks"] if value == textbook["best"])
        lines += [
            f"| engine | {engine['best']:.4f} | {engine['seconds_to_best']:.0f} |",
            f"| textbook | {textbook['best']:.4f} | {to_best:.0f} |",
        ]
        more = "more than " if run["ratio_is_a_lower_bound"] else ""
        reached = "was as good" if not more else "was still not as good"
        notes.append(
            f"The textbook {reached} after {textbook['seconds']:.0f} s: {more}"
            f"**{run['ratio_of_distilling']:.1f} times** the engine's distilling, {more}"
            f"{run['ratio_with_teacher']:.1f} times with the teacher's {teacher['seconds']:.0f} s "
            f"(validation {teacher['validation']:.4f}) on both sides. The textbook's best the "
            f"engine had by {engine_seconds(run)}. `{command}`"
        )
    return "\n".join([*lines, "", *notes])


def engine_seconds(run: Run) -> str:
    """When the engine had what the textbook reached at best, as far as it was looked at."""
    seconds = run["engine_seconds_to_the_textbooks_best"]
    if seconds is None:
        return "no time"
    first = " (its first look)" if seconds == run["engine"]["looks"][0][0] else ""
    return f"{seconds:.0f} s{first}"


def gpu_table(found: Run) -> str:
    lines = [
        "| learners | median of an outer step, ms (lowest) | means: window and way back, ms "
        "| one real batch, ms | learners' draws and other steps, ms | rest, ms "
        "| traced: kernels | GPU busy, ms | starts from Python | recordings | peak, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, way in found["ways"].items():
        parts, trace = way["parts"], way["trace"]
        unrolled = 1000 * (parts["window"] + parts["reverse"])
        rest = 1000 * (parts["soft sequences"] + parts["rest"])
        one = 1000 * parts["real batch"] / way["outer"]["learners"]
        lines.append(
            f"| {name} | {1000 * way['seconds_per_outer_step']:.0f} "
            f"({1000 * way['lowest_and_highest'][0]:.0f}) | **{unrolled:.0f}** | {one:.0f} | "
            f"{1000 * parts['warm-up']:,.0f} | {rest:.0f} | {trace['kernels']:,.0f} | "
            f"{1000 * trace['busy_seconds']:.0f} | {trace['started_by_themselves']:,.0f} | "
            f"{trace['recordings_started']:.0f} | {way['peak_mib']:,.0f} |"
        )
    machine = found["machine"]
    what = f"{machine['accelerator']}, torch {machine['torch']}, Python {machine['python']}"
    work = f"{found['dataset']}, {found['mode']}, {found['steps']} outer steps"
    return "\n".join([*lines, "", f"Machine: {what}; {work}. Note: {found['note']}."])


def gpu_picture(found: Run, path: Path) -> None:
    """How busy the GPU was in the course of a traced outer step, a strip a way."""
    ways = found["ways"]
    figure, axes = plt.subplots(len(ways), 1, figsize=(8, 1.1 * len(ways) + 0.6), sharex=True)
    longest = max(1000 * way["trace"]["seconds_per_outer_step"] for way in ways.values())
    for axis, (name, way) in zip(axes, ways.items(), strict=True):
        trace = way["trace"]
        shares = trace["busy_by_part_of_a_step"]
        width = 1000 * trace["seconds_per_outer_step"] / len(shares)
        at = [nth * width for nth in range(len(shares))]
        axis.fill_between(at, shares, step="post", color=COLOURS["shared-items"], linewidth=0)
        axis.set_ylim(0, 1)
        axis.set_yticks([0, 1], ["0", "1"])
        axis.set_title(name, loc="left", fontsize=9)
    axes[-1].set_xlim(0, longest)
    axes[-1].set_xlabel("milliseconds of an outer step; height: share of the time a kernel runs")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def catalogue_table(memory: dict[str, Any]) -> str:
    lines = [
        "| items | mode | before the first step, MiB | peak, MiB | one table of n x d, MiB "
        "| S alone, MiB | an outer step, s of the processor (on the clock) |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row['items']:,} | {row['mode']} | {row['before_mib']:,.0f} | "
            f"**{row['peak_mib']:,.0f}** | {_table(row['items']):,.1f} | "
            f"{_dense(row['items']):,.0f} | {_processor_seconds(row)} ({row['seconds']:,.1f}) |"
            for row in _of(memory["rows"], "catalogue")
        ),
    ]
    return "\n".join(lines)


def window_table(memory: dict[str, Any]) -> str:
    lines = [
        "| mode | W | peak with graphs kept, MiB | peak re-computed, MiB "
        "| time of re-computing / of keeping (each repeat) |",
        "|---|---|---|---|---|",
    ]
    rows = _of(memory["rows"], "window")
    if not rows:
        return "Not run yet."
    for again in (row for row in rows if row["recompute"]):
        (kept,) = (
            row
            for row in rows
            if not row["recompute"]
            and (row["mode"], row["window"]) == (again["mode"], again["window"])
        )
        each = ", ".join(f"{ratio:.2f}" for ratio in again["time_ratios"])
        lines.append(
            f"| {again['mode']} | {again['window']} | {kept['peak_mib']:,.0f} | "
            f"{again['peak_mib']:,.0f} | **{again['time_ratio']:.2f}** ({each}) |"
        )
    return "\n".join(lines)


def side_table(found: Run) -> str:
    """Outer steps of this tree and of the earlier commit."""
    lines = [
        f"| outer steps | {found['commit']}: processor seconds a step (on the clock) | now "
        "| ratio of processor seconds (each repeat) | of the clock's (each repeat) "
        "| peak before, MiB | peak now, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        processor, clock = (
            f"{row[f'ratio{of}']:.1f} ({', '.join(f'{each:.1f}' for each in row[f'ratios{of}'])})"
            for of in ("_of_processor", "")
        )
        before, today = (
            f"{row[f'{side}_processor_seconds']:.2f} ({row[f'{side}_seconds']:.2f})"
            for side in ("before", "today")
        )
        lines.append(
            f"| {row['name']} | {before} | {today} | {processor} | {clock} | "
            f"{row['before_peak_mib']:,.0f} | {row['today_peak_mib']:,.0f} |"
        )
    lines += ["", f"| milliseconds of a step | side | {' | '.join(PARTS)} |", "|---" * 8 + "|"]
    for row in found["rows"]:
        for side, name in (("before", found["commit"]), ("today", "now")):
            parts = row[f"{side}_parts"]
            cells = " | ".join(f"{1000 * parts.get(part, 0):,.0f}" for part in PARTS)
            lines.append(f"| {row['name']} | {name} | {cells} |")
    machine = found["machine"]
    loads = ", ".join(f"{row['load_average']:.1f}" for row in found["rows"])
    what = f"{machine['processor']}, torch {machine['torch']}, {machine['threads']} thread"
    return "\n".join([*lines, "", f"Machine: {what}; load average after each case: {loads}."])


def catalogue_picture(rows: Rows, path: Path) -> None:
    """Peak memory against n, with what must be held and what a dense S would take."""
    figure, panel = plt.subplots(figsize=(6.4, 3.6))
    for mode in MODES:
        own = [row for row in _of(rows, "catalogue") if row["mode"] == mode]
        at = [row["items"] for row in own]
        panel.plot(
            at,
            [row["peak_mib"] for row in own],
            "o-",
            ms=3,
            lw=1.2,
            color=COLOURS[mode],
            label=mode,
        )
    items = sorted({row["items"] for row in _of(rows, "catalogue")})
    for label, size, style in (("one table of n x d", _table, ":"), ("S alone", _dense, "--")):
        panel.plot(items, [size(n) for n in items], style, lw=1, color="#888888", label=label)
    panel.axhline(LIMIT_MIB, color="#333333", lw=0.8)
    panel.text(items[0], LIMIT_MIB * 1.1, "6 GiB", fontsize=7)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_ylim(100, 40_000)
    _dress(panel, "items", "peak of the process, MiB")
    figure.tight_layout()
    figure.savefig(path)


def window_picture(rows: Rows, path: Path) -> None:
    """Peak memory and the price in time against W."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.2))
    for mode in MODES:
        own = [row for row in _of(rows, "window") if row["mode"] == mode]
        for recompute, style in ((False, "o--"), (True, "o-")):
            drawn = [row for row in own if row["recompute"] == recompute]
            left.plot(
                [row["window"] for row in drawn],
                [row["peak_mib"] for row in drawn],
                style,
                ms=3,
                lw=1.2,
                color=COLOURS[mode],
                label=f"{mode}, {'re-computed' if recompute else 'graphs kept'}",
            )
        priced = [row for row in own if row["recompute"]]
        right.plot(
            [row["window"] for row in priced],
            [row["time_ratio"] for row in priced],
            "o-",
            ms=3,
            lw=1.2,
            color=COLOURS[mode],
            label=mode,
        )
    right.axhline(1.5, color="#333333", lw=0.8, ls=":")
    right.set_ylim(0.8, 1.8)
    _dress(left, "W, inner steps", "peak of the process, MiB")
    _dress(right, "W, inner steps", "time, re-computed / kept")
    figure.tight_layout()
    figure.savefig(path)


def _dress(panel: Any, across: str, up: str) -> None:
    panel.set_xlabel(across)
    panel.set_ylabel(up)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=7)


def _of(rows: Rows, family: str) -> Rows:
    def order(row: dict[str, Any]) -> tuple[int, int, int]:
        return MODES.index(row["mode"]), row["items"], row["window"]

    return sorted((row for row in rows if row["family"] == family), key=order)


def _table(items: int) -> float:
    return items * 64 * MIB_A_NUMBER


def _dense(items: int) -> float:
    return 100 * 50 * items * MIB_A_NUMBER


def _processor_seconds(row: dict[str, Any]) -> str:
    """A dash for points that were measured before processor seconds were."""
    return f"{row['processor_seconds']:,.1f}" if "processor_seconds" in row else "-"


def _log(run: Run) -> str:
    settings, outer = run["settings"], run["settings"]["outer"]
    learners = f", {outer['learners']} learners" if outer["learners"] > 1 else ""
    log = settings["dataset"] or "random"
    return f"{settings['items']:,} ({log}{learners})"


def _spread(side: dict[str, Any]) -> str:
    low, high = side["lowest_and_highest"]
    return f"{side['seconds_per_outer_step']:.3f} ({low:.3f} to {high:.3f})"


def _mib(side: dict[str, Any]) -> str:
    return f"{side['peak_mib']:,.0f}"


def _how(runs: dict[str, Run]) -> str:
    commands = "\n".join(runs)
    machine = next(iter(runs.values()))["machine"]
    return (
        f"Machine: {machine['processor']}, torch {machine['torch']}, Python {machine['python']}; "
        f"rows by\n\n```sh\n{commands}\n```"
    )


if __name__ == "__main__":
    main()
