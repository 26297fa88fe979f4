"""What a person sees while a job runs: lines of text, and bars on a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from mnist_ray.errors import RetryableError
from mnist_ray.runs.folder import RunFolder
from mnist_ray.sources.base import Source


class Console:
    """Where a job prints: bars on a terminal, elsewhere one plain line every few seconds."""

    def __init__(self, stream: IO[str] | None = None, *, every: float = 5.0) -> None:
        self._stream = stream or sys.stdout
        self._every = every
        self._bar: Bar | None = None
        self._copy: Callable[[str], object] | None = None

    @contextmanager
    def copied_to(self, log: Callable[[str], object]) -> Iterator[None]:
        """Give each line that is printed in the block to a log as well."""
        self._copy = log
        try:
            yield
        finally:
            self._copy = None

    def print(self, text: str = "") -> None:
        """Print a line. Raises RetryableError if it cannot be written (a closed pipe, a full disk)."""
        if self._copy is not None:
            self._copy(text)
        try:
            if self._bar is None:
                print(text, file=self._stream, flush=True)
            else:
                self._bar.print_above(text)
        except OSError as error:
            if self._stream is sys.stdout:  # otherwise Python tries once more when it exits
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise RetryableError(
                f"cannot write the output: {error.strerror}; the same command continues from what is committed"
            ) from error

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Bar]:
        """A progress bar, which ends as one line on any stream."""
        bar = (TerminalBar if self._stream.isatty() else PlainBar)(self, label, total)
        self._bar = bar
        try:
            yield bar
        finally:
            bar.stop()


class Bar:
    """A progress bar: `update` as often as you like, `finish` once with the line that stays."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        self.console, self.label, self.total = console, label, total

    def update(self, done: int, text: str = "") -> None:
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

    def update(self, done: int, text: str = "") -> None:
        now = time.monotonic()
        if now - self._last >= self.console._every:
            self._last = now
            self.console.print(f"{self.label}  {done:,}/{self.total:,}  {text}".rstrip())


class TerminalBar(Bar):
    def __init__(self, console: Console, label: str, total: int) -> None:
        super().__init__(console, label, total)
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=RichConsole(file=console._stream),
            transient=True,
        )
        self._task = self._progress.add_task(label, total=total, text="")
        self._progress.start()

    def update(self, done: int, text: str = "") -> None:
        self._progress.update(self._task, completed=done, text=text)

    def print_above(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        self._progress.stop()
        super().stop()


def print_passed_over(source: Source, console: Console) -> None:
    """The files of an input that are not read, by kind."""
    if source.passed_over:
        console.print(f"passed over: {', '.join(f'{count:,} {kind}' for kind, count in source.passed_over.items())}")


def print_shapes(source: Source, console: Console) -> None:
    """The shapes of a dataset to train on, and what is missing from it."""
    print_passed_over(source, console)
    for note in source.notes_on_classes():
        console.print(f"warning: {note}")
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
    console.print()
    for phase in ("before", "after"):
        if figures := metrics.get(phase):
            console.print(
                f"  {phase:<9}loss {figure(figures['loss'])}   accuracy {figure(figures['accuracy'])}"
                f"   {figures['num_correct']:,} of {figures['num_seen']:,} correct"
            )
    trained, seconds = metrics["train"], metrics["seconds"]
    last = trained["epochs"][-1]
    console.print(
        f"  {'train':<9}loss {figure(last['loss'])}   accuracy {figure(last['accuracy'])}"
        f"   {len(trained['epochs'])} epochs, {trained['num_workers']} workers,"
        f" {figure(trained['milliseconds_per_step'], '.2f')} ms a step"
    )
    phases = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if name != "total" and value)
    console.print(f"  {'seconds':<9}{seconds['total']:.1f}   ({phases})")
    console.print()
    for name, place in (("metrics", folder.metrics), ("report", folder.report), ("model", folder.model)):
        if place.exists():
            console.print(f"  {name:<9}{place}")
    if folder.predictions.exists():
        console.print(f"  {'scores':<9}{folder.predictions}")
