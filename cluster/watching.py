"""Prometheus metrics of a precomputation, through Ray's own exporter.

They name no unit, block or row: what is scraped is kept by others.
"""

from ray.util.metrics import Counter, Gauge

from cluster.driver import Totals


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
