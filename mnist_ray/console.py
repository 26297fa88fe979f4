"""What a person sees while a job runs: lines of text, and bars on a terminal."""

from __future__ import annotations

import html
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

from mnist_ray.config import Talk
from mnist_ray.errors import RetryableError, counted, printable
from mnist_ray.messages import json_line
from mnist_ray.runs.diary import Diary
from mnist_ray.runs.folder import RunFolder
from mnist_ray.runs.pace import duration
from mnist_ray.sources.base import Source
from mnist_ray.storage.location import Location

_PATIENCE_SECONDS = 3.0
"""After so long, a person wants to know what a wait is for …"""

_REMINDER_SECONDS = 30.0
"""… and that it still is."""

_NOTEBOOK_SECONDS = 0.2
"""Between two pictures of a bar in a notebook: each is a message to the browser."""


class Console:
    """Where a job prints: bars on a terminal, elsewhere one plain line every few seconds; or JSON, an object a line."""

    def __init__(
        self, stream: IO[str] | None = None, *, every: float = 5.0, quiet: bool = False, as_json: bool = False
    ) -> None:
        """quiet: only warnings and the result."""
        self._stream = stream or sys.stdout
        self._every, self._quiet, self._as_json = every, quiet, as_json
        self._bar: Bar | None = None
        self._diary: Diary | None = None
        self._run: str | None = None
        self._phase: Callable[[], str | None] = lambda: None

    @classmethod
    def of(cls, config: Talk, *, quiet: bool | None = None) -> Console:
        """As the options of a command want it. quiet: in place of the option."""
        console = cls(quiet=config.quiet if quiet is None else quiet, as_json=config.log_format == "json")
        if console._as_json and (there := config.written_to()):
            console._run, console._phase = str(Location.parse(there[1])), lambda: "start"
        return console

    def place(self) -> tuple[str | None, str | None]:
        """The run and its phase, as far as they are known."""
        return self._run, self._phase()

    @contextmanager
    def about(self, run: str, phase: Callable[[], str | None], diary: Diary | None = None) -> Iterator[None]:
        """Name the run and its phase in each line of the block, where lines are JSON. diary: is given each line, too,
        and each event."""
        self._run, self._phase, self._diary = run, phase, diary
        try:
            yield
        finally:
            self._diary = None

    def event(self, event: str, **fields: Any) -> None:
        """Note for later what has happened, in numbers."""
        if self._diary:
            self._diary.event(event, **fields)

    def save(self) -> None:
        """Have in storage what was noted so far."""
        if self._diary:
            self._diary.save()

    def print(self, text: str = "") -> None:
        """Print a line. Raises RetryableError if it cannot be written (a closed pipe, a full disk)."""
        self._say(text, "info")

    def warn(self, text: str) -> None:
        """Print a line that is not to be overlooked."""
        self._say(text, "warning")

    def result(self, text: str = "") -> None:
        """Print a line of what the job is for."""
        self._say(text, "result")

    def _say(self, text: str, level: str, **fields: Any) -> None:
        line = printable(f"warning: {text}" if level == "warning" else text)
        self._keep(line)
        if (self._quiet and level == "info") or (self._as_json and not text):
            return
        if self._as_json:
            line = json_line(level, text.strip(), *self.place(), **fields)
        try:
            if self._bar is None:
                print(line, file=self._stream, flush=True)
            else:
                self._bar.print_above(line)
        except OSError as error:
            if self._stream is sys.stdout:  # otherwise Python tries once more when it exits
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise RetryableError(
                f"cannot write the output: {error.strerror}; the same command continues from what is committed"
            ) from error

    def _keep(self, line: str) -> None:
        """Have a line in the run's log."""
        if self._diary:
            self._diary.line(line)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Bar]:
        """A progress bar, which ends as one line on any stream."""
        bar = self._kind_of_bar()(self, label, total)
        self._bar = bar
        try:
            yield bar
        finally:
            bar.stop()

    def _kind_of_bar(self) -> type[Bar]:
        if self._quiet or self._as_json:
            return PlainBar
        if self._stream is sys.stdout and _is_notebook():
            return NotebookBar
        return TerminalBar if self._stream.isatty() else PlainBar

    def waiting(self, what: str) -> Waiting:
        """Say what a wait is for, once it is long. Ends with the block, or by its `end`."""
        return Waiting(self, what)


class Waiting:
    """A wait: after 3 seconds, and then every 30, a line says what for."""

    def __init__(self, console: Console, what: str) -> None:
        self._console, self._what = console, what
        self._over, self._began = threading.Event(), time.monotonic()
        threading.Thread(target=self._remind, daemon=True, name="waiting").start()

    def _remind(self) -> None:
        pause, seconds = _PATIENCE_SECONDS, ""
        while not self._over.wait(pause):
            with suppress(RetryableError):  # the next line of the job's own fails as well
                self._console.print(f"{self._what} ...{seconds}")
            pause = _REMINDER_SECONDS
            seconds = f" ({duration(time.monotonic() - self._began + pause)} so far)"

    def end(self) -> None:
        self._over.set()

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class Bar:
    """A progress bar: `update` as often as you like, `finish` once with the line that stays."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        self.console, self.label, self.total = console, label, total

    def update(self, done: int, text: str = "", seconds_left: float | None = None) -> None:
        raise NotImplementedError

    def print_above(self, text: str) -> None:
        print(text, file=self.console._stream, flush=True)

    def stop(self) -> None:
        """Remove the moving part."""
        self.console._bar = None

    def finish(self, text: str) -> None:
        self.stop()
        self.console.print(f"{self.label}  {text}")


class PlainBar(Bar):
    def __init__(self, console: Console, label: str, total: int) -> None:
        super().__init__(console, label, total)
        self._last = time.monotonic()

    def update(self, done: int, text: str = "", seconds_left: float | None = None) -> None:
        now = time.monotonic()
        if now - self._last >= self.console._every:
            self._last = now
            line = f"{self.label}  {done:,}/{self.total:,}  {_with_time(text, seconds_left)}"
            left = None if seconds_left is None else round(seconds_left, 1)
            self.console._say(line.rstrip(), "info", done=done, total=self.total, seconds_left=left)


class TerminalBar(Bar):
    def __init__(self, console: Console, label: str, total: int) -> None:
        super().__init__(console, label, total)
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[text]}"),
            console=RichConsole(file=console._stream),
            transient=True,
        )
        self._task = self._progress.add_task(label, total=total, count=self._count(0), text="")
        self._progress.start()

    def update(self, done: int, text: str = "", seconds_left: float | None = None) -> None:
        text = _with_time(text, seconds_left)
        self._progress.update(self._task, completed=done, count=self._count(done), text=text)

    def _count(self, done: int) -> str:
        """Of one width, so that what follows stands still."""
        total = f"{self.total:,}"
        return f"{done:>{len(total)},}/{total}"

    def print_above(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        self._progress.stop()
        super().stop()


def _is_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which shows what is displayed."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class NotebookBar(Bar):
    """A bar as HTML, which becomes the line that stays. rich would need ipywidgets here."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        super().__init__(console, label, total)
        self._shown, self._line = time.monotonic(), ""
        self._display: Any = None

    def update(self, done: int, text: str = "", seconds_left: float | None = None) -> None:
        now = time.monotonic()
        if now - self._shown >= _NOTEBOOK_SECONDS:
            self._shown = now
            line = f"{self.label}  {done:,}/{self.total:,}  {_with_time(text, seconds_left)}"
            bar = f'<progress value="{done}" max="{max(self.total, 1)}"></progress> '
            self._show(line.rstrip(), bar)

    def stop(self) -> None:
        if self.console._bar is self:
            super().stop()
            if self._line or self._display:
                self._show(self._line)

    def finish(self, text: str) -> None:
        self._line = f"{self.label}  {text}"
        self.console._keep(self._line)
        self.stop()

    def _show(self, line: str, bar: str = "") -> None:
        """In one place: below what is printed before it is shown first."""
        from IPython.display import display

        text = f'<pre style="margin: 0">{bar}{html.escape(line)}</pre>' if line else ""
        bundle = {"text/plain": line, "text/html": text}
        if self._display:
            self._display.update(bundle, raw=True)
        else:
            self._display = display(bundle, raw=True, display_id=True)


def _with_time(text: str, seconds_left: float | None) -> str:
    return text if seconds_left is None else f"{text}  {duration(seconds_left)} left".lstrip()


def print_remarks(source: Source, console: Console) -> None:
    """How an input is read, and the files that are not read, by kind."""
    for remark in source.remarks:
        console.print(remark)
    if source.passed_over:
        console.print(f"passed over: {', '.join(f'{count:,} {kind}' for kind, count in source.passed_over.items())}")


def print_shapes(source: Source, console: Console) -> None:
    """The shapes of a dataset to train on, and what is missing from it."""
    print_remarks(source, console)
    for note in source.notes_on_classes():
        console.warn(note)
    for split, rows in source.splits.items():
        suffix = f"_{split}" if split != "all" else ""
        console.print(f"x{suffix} {(rows, *source.image_shape)} uint8   y{suffix} {(rows,)}")


def number_row(values: Sequence[float]) -> str:
    return " ".join(f"{value:7.4f}" for value in values[:20]) + (" ..." if len(values) > 20 else "")


def figure(value: float | None, spec: str = ".4f") -> str:
    """A number, or "unknown" for the None that metrics hold in place of what is undefined, infinite or NaN."""
    return "unknown" if value is None else format(value, spec)


def epoch_line(epoch: dict[str, Any], per_second: float | None) -> str:
    names = [name for name in ("loss", "accuracy", "val_loss", "val_accuracy") if name in epoch]
    return "  ".join([*(f"{name} {figure(epoch[name])}" for name in names), f"{figure(per_second, ',.0f')} images/s"])


def print_result(folder: RunFolder, metrics: dict[str, Any], console: Console) -> None:
    """Print the closing table, and where the files are."""
    console.result()
    for phase in ("before", "after"):
        if figures := metrics.get(phase):
            console.result(
                f"  {phase:<9}loss {figure(figures['loss'])}   accuracy {figure(figures['accuracy'])}"
                f"   {figures['num_correct']:,} of {figures['num_seen']:,} correct"
            )
    trained, seconds = metrics["train"], metrics["seconds"]
    last, epochs, workers = trained["epochs"][-1], len(trained["epochs"]), trained["num_workers"]
    console.result(
        f"  {'train':<9}loss {figure(last['loss'])}   accuracy {figure(last['accuracy'])}"
        f"   {counted(epochs, 'epoch')}, {counted(workers, 'worker')},"
        f" {figure(trained['milliseconds_per_step'], '.2f')} ms a step"
    )
    phases = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if name != "total" and value)
    console.result(f"  {'seconds':<9}{seconds['total']:.1f}   ({phases})")
    console.result()
    for name, place in (("metrics", folder.metrics), ("report", folder.report), ("model", folder.model)):
        if place.exists():
            print_place(name, place, console)
    if folder.predictions.exists():
        print_place("scores", folder.predictions, console)


def print_place(name: str, place: object, console: Console) -> None:
    """A line of the closing table: where something is."""
    console.result(f"  {name:<9}{place}")
