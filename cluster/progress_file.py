"""`progress.json`: the progress of a precomputation, for `unlearn status` in another shell."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.durable_write import write_atomically

if TYPE_CHECKING:
    from cluster.driver import WorkTotals
    from cluster.scheduler import Scheduler

_NAME = "progress.json"
# Often enough to follow, seldom enough for a shared file system.
WRITE_SECONDS = 2.0


class ProgressFile:
    """Written while the driver runs; its absence means that none does."""

    def __init__(self, run_path: Path, total_steps: int) -> None:
        """Name the run and the steps of all blocks that wait."""
        self._path, self._total_steps = run_path / _NAME, total_steps
        self._began = time.monotonic()
        self._written_at = float("-inf")

    def show(self, scheduler: "Scheduler", totals: "WorkTotals") -> None:
        """Write where the scheduler stands, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self._written_at < WRITE_SECONDS:
            return
        self._written_at = now
        seconds = max(now - self._began, 1e-9)
        rate = scheduler.steps_done / seconds
        left = self._total_steps - scheduler.steps_done
        values = {
            "steps_done": scheduler.steps_done,
            "steps_in_all": self._total_steps,
            "workers_busy": len(scheduler.held),
            "workers_starting": len(scheduler.starting),
            "workers_lost": totals.workers_lost,
            "hvps_per_second": round(totals.num_products / seconds, 1),
            "seconds": round(seconds, 1),
            "seconds_left": round(left / rate, 1) if rate else None,
            "blocks_in_work": {
                str(block): scheduler.positions.get(block, 0) for block in scheduler.held.values()
            },
        }
        write_atomically(self._path, json.dumps(values, indent=2).encode())

    def remove(self) -> None:
        """Remove the file: no driver is at work any more."""
        self._path.unlink(missing_ok=True)


def read_progress(run_path: Path) -> dict[str, Any] | None:
    """Return what the driver wrote last, None if it wrote nothing or ended."""
    try:
        values: dict[str, Any] = json.loads((run_path / _NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return values
