"""Progress of long work on a terminal: what is running, how far it is, time elapsed and time left."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from f2i_export.schedule import Event
    from f2i_quantize.train.distill import DistillProgress


class Steps:
    """Shows progress with the time elapsed and the time left, on stderr when it is a terminal. Otherwise prints a line for each finished step."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (
            SpinnerColumn("line"),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Steps:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def event(self, event: Event) -> None:
        """Shows a step of an export."""
        label = event.job.label
        if event.state in {"done", "cached"}:
            took = "from the cache" if event.state == "cached" else f"{event.seconds:.0f} s"
            self.console.print(f"{label}: {took}", style="dim")
            if label in self.tasks:
                self.bar.remove_task(self.tasks.pop(label))
        elif label in self.tasks:
            self.bar.update(self.tasks[label], description=f"{label}: {event.stage}")
        else:
            self.tasks[label] = self.bar.add_task(f"{label}: {event.stage}", total=None)

    def note(self, text: str) -> None:
        """Prints a warning, whether or not progress is shown."""
        self.console.print(text, style="yellow")

    def count(self, what: str, done: int, of: int) -> None:
        """Shows that ``done`` of ``of`` parts are done."""
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what, total=of)
        self.bar.update(self.tasks[what], completed=done, total=of)
        if done == of:
            self.bar.remove_task(self.tasks.pop(what))
            self.console.print(f"{what}: {of} done", style="dim")

    def training(self, at: DistillProgress) -> None:
        """Shows a report of a training run: a line for each evaluation, and the bar for the rest."""
        what = "training"
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what, total=at.steps)
        if at.validation_psnr_y is not None:
            self.console.print(f"step {at.step} of {at.steps}: {at.validation_psnr_y:.3f} dB PSNR-Y, {at.seconds:.0f} s", style="dim")
        else:
            self.bar.update(self.tasks[what], completed=at.step, description=f"training, loss {at.loss:.5f}")

    def counter(self, what: str) -> Callable[[int, int], None]:
        """Returns a callback (done, of) that shows the progress of one thing."""
        return lambda done, of: self.count(what, done, of)
