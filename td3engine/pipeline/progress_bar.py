"""Progress bars of a run, on a terminal or in a notebook: one bar a phase."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from td3engine import events

PHASE_NAMES = {
    "preparing": "reading",
    "pretraining": "teacher",
    "distilling": "distilling",
    "evaluating": "measuring",
    "publishing": "storing",
}


class PhaseBars:
    """One bar a phase, with step, best validation NDCG@10 so far, time spent and time left.

    A context manager. The bars appear with the first event and stop at the end of the block.
    """

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=14),
            TextColumn("{task.fields[steps]:>8}"),
            TextColumn("{task.fields[quality]:<19}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self.tasks: dict[str, TaskID] = {}
        self.current: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        self.progress.stop()

    def enter(self, phase: str) -> None:
        """Begin a phase and complete the one before; one that begins again keeps its bar."""
        if phase == self.current:
            return
        self.progress.start()  # at the first event: a process that only assists has none
        self.finish()
        self.current = phase
        if phase not in self.tasks:
            name = PHASE_NAMES.get(phase, phase)
            self.tasks[phase] = self.progress.add_task(
                name, total=None, steps="", quality="", left=""
            )

    def show(
        self, phase: str, step: int, total: int, left: float | None, metrics: dict[str, float]
    ) -> None:
        """Update a phase's bar."""
        self.enter(phase)
        best = metrics.get("ndcg@10")
        self.progress.update(
            self.tasks[phase],
            completed=step,
            total=total,
            steps=f"{step}/{total}",
            quality="" if not best else f"val NDCG@10 {best:.4f}",
            left="" if left is None else f"{left:.0f} s left",
        )

    def finish(self) -> None:
        """Complete the running phase's bar."""
        if self.current is not None:
            task = self.tasks[self.current]
            # Early stopping ends the teacher before its last epoch: that epoch completes the bar.
            done = self.progress.tasks[self.progress.task_ids.index(task)].completed or 1
            self.progress.update(task, total=done, completed=done, left="")
            self.progress.stop_task(task)
            self.current = None

    def listen(self, event: events.Event) -> None:
        """Show an event of a run in this process."""
        match event:
            case events.PhaseStarted(phase):
                self.enter(phase)
            case events.Progress():
                self.show(event.phase, event.step, event.total, event.seconds_left, event.metrics)
            case events.Note(message):
                self.progress.console.print(f"note: {message}", markup=False)

    def show_event(self, kind: str, data: dict[str, Any]) -> None:
        """Show an event of a service's job."""
        if kind == "phase":
            self.enter(data["phase"])
        elif kind == "progress":
            self.show(
                data["phase"],
                data["step"],
                data["total"],
                data.get("seconds_left"),
                data.get("metrics") or {},
            )
        elif kind == "log":
            self.progress.console.print(f"note: {data['message']}", markup=False)
