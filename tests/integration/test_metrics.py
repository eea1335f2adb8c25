"""What Prometheus would scrape from the node of a driver."""

import re
import time
import urllib.error
import urllib.request

import pytest
import ray

from cluster.driver import WorkTotals
from cluster.ray_pool import Gauges

pytestmark = pytest.mark.ray
# Ray hands metrics on every ten seconds; a busy machine takes longer.
SCRAPE_SECONDS = 60.0


def scraped() -> dict[str, float]:
    """Our metrics as the node's port serves them now; labels are Ray's own."""
    node = ray.nodes()[0]  # type: ignore[no-untyped-call]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    except urllib.error.URLError:
        return {}
    found = re.findall(r"^ray_(unlearn_\w+)\{.*\} ([\d.e+]+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


@pytest.mark.usefixtures("local_ray")
def test_totals_are_served_as_counters_and_a_rate() -> None:
    gauges = Gauges()
    gauges.show(WorkTotals(num_steps=3, num_products=100, busy_seconds=1.0))
    gauges.show(
        WorkTotals(
            num_steps=7, num_products=1234, busy_seconds=3.0, stored_bytes=99, workers_lost=1
        )
    )
    deadline = time.monotonic() + SCRAPE_SECONDS
    found = scraped()
    while found.get("unlearn_hvps_per_busy_second") != 567 and time.monotonic() < deadline:
        time.sleep(0.5)
        found = scraped()
    # Other tests of this session may have counted before; what is served never falls short.
    assert found["unlearn_steps_total"] >= 7
    assert found["unlearn_hvps_total"] >= 1234
    assert found["unlearn_stored_bytes_total"] >= 99
    assert found["unlearn_workers_lost_total"] >= 1
    assert found["unlearn_hvps_per_busy_second"] == 567
