"""Progress on the console: bars in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline.progress import Progress as Report

# Without a terminal, one line in this many seconds: enough to follow, few enough for a log.
LINE_SECONDS = 10.0


class Reporter:
    """Progress and messages on standard error; results belong to standard output."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, soft_wrap=True, highlight=False)

    def say(self, message: str) -> None:
        """Print one line."""
        self.console.print(message, markup=False)

    @contextmanager
    def stage(self, name: str, unit: str = "steps") -> Iterator[Report]:
        """Show the progress of a stage; yields the function to report it with."""
        if self.console.is_terminal:
            with _bars(self.console) as bars:
                task = bars.add_task(name, total=None)
                yield lambda done, total: bars.update(task, completed=done, total=total)
        else:
            yield self._lines(name, unit)

    def _lines(self, name: str, unit: str) -> Report:
        started = time.monotonic()
        last = started

        def report(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < LINE_SECONDS and done < total:
                return
            last = now
            rate = done / max(now - started, 1e-9)
            left = (total - done) / rate if rate else float("inf")
            self.say(
                f"{name}: {done:,} of {total:,} {unit}, {rate:,.0f} {unit}/s, {left:,.0f} s left"
            )

        return report


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def print_table(table: object) -> None:
    """Print a table to standard output; wide enough for its columns when piped."""
    width = None if sys.stdout.isatty() else 120
    Console(width=width).print(table)
