"""Where a precomputation stands: `progress.json` for `unlearn status`, metrics for Prometheus."""

import json
import time
from pathlib import Path
from typing import Any

from ray.util.metrics import Counter, Gauge

from cluster.driver import Totals
from cluster.scheduler import Scheduler
from storage.durable_write import write_atomically

_NAME = "progress.json"
# Often enough for a person who looks, seldom enough for a shared file system.
WRITE_SECONDS = 2.0


class ProgressFile:
    """Written while the driver runs; its absence means that none does."""

    def __init__(self, run_path: Path, total_steps: int) -> None:
        """Name the run and the steps of all blocks that wait."""
        self._path, self._total_steps = run_path / _NAME, total_steps
        self._began = time.monotonic()
        self._written_at = float("-inf")

    def show(self, scheduler: Scheduler, totals: Totals) -> None:
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
        """Remove the file: nobody is at work any more."""
        self._path.unlink(missing_ok=True)


def read_progress(run_path: Path) -> dict[str, Any] | None:
    """Return what the driver wrote last, None if it wrote nothing or ended."""
    try:
        values: dict[str, Any] = json.loads((run_path / _NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return values


class Gauges:
    """The driver's totals as metrics; Ray's agent on each node serves them."""

    def __init__(self) -> None:
        """Register the metrics with Ray, which must be running."""
        self._steps = Counter("unlearn_steps", "Steps of the recursion, all blocks together.")
        self._hvps = Counter("unlearn_hvps", "Hessian-vector products computed.")
        self._bytes = Counter("unlearn_stored_bytes", "Bytes of approximators written.")
        self._lost = Counter("unlearn_workers_lost", "Workers that died and were replaced.")
        self._rate = Gauge("unlearn_hvps_per_busy_second", "HVPs per second of one worker.")
        self._shown = Totals()

    def show(self, totals: Totals) -> None:
        """Add what has happened since the last call."""
        last = self._shown
        for counter, now, before in (
            (self._steps, totals.num_steps, last.num_steps),
            (self._hvps, totals.num_products, last.num_products),
            (self._bytes, totals.stored_bytes, last.stored_bytes),
            (self._lost, totals.workers_lost, last.workers_lost),
        ):
            if now > before:
                counter.inc(now - before)
        if totals.busy_seconds > last.busy_seconds:
            self._rate.set(
                (totals.num_products - last.num_products)
                / (totals.busy_seconds - last.busy_seconds)
            )
        self._shown = Totals(**vars(totals))
