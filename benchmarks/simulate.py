"""The real Scheduler and the real Driver on clusters that are not there, up to thousands of GPUs.

    python benchmarks/simulate.py [--gpus 8,64,512,4096] [--blocks 200000] [--only calm,all] [--json]
    python benchmarks/simulate.py --plot docs/scaling.svg [--from FILE]
    python benchmarks/simulate.py --ray-costs       what an answer costs the driver on Ray
    python benchmarks/simulate.py --store-costs     what a block costs the store, and folding the parts
    python benchmarks/simulate.py --confirm         the same run on Ray and simulated, eight workers
    python benchmarks/simulate.py --arithmetic      three recipes on GPUs, from the planner's formulas

Workers and clock are simulated (`simulated_cluster.py`); the driver's processor time and the memory are
real, of this machine, each row in a process of its own. `--blocks` is for the largest number of GPUs,
the others have their share, so that all work equally long; so it is with `--losses`. The cases:

    calm            nothing happens
    losses          nodes are lost, one a minute in the largest cluster, and replaced after five minutes
    stragglers      one GPU in twenty is slower, twice on average, some of them many times
    autoscaling     it begins with a sixteenth of the nodes, is offered 64 a minute, loses half of them
                    for a third of the time, and gives idle ones back at the end
    all             losses, stragglers and autoscaling together
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib.axes import Axes

from benchmarks.simulated_cluster import Setting, SimulatedCluster
from cluster.errors import ClusterError
from pipeline.evaluation.figures import SERIES, draw, legend

CASES = ("calm", "losses", "stragglers", "autoscaling", "all")
PARTS = ("slow", "lost", "driver", "start", "vacant", "tail")


def setting_of(case: str, gpus: int, blocks: int, losses: float) -> Setting:
    """Return what a case simulates; `losses` is nodes per minute in this cluster."""
    setting = Setting(gpus=gpus, blocks=blocks)
    if case in ("losses", "all"):
        setting = replace(setting, losses_per_minute=losses)
    if case in ("stragglers", "all"):
        setting = replace(setting, slow_share=0.05)
    if case in ("autoscaling", "all"):
        first = max(1, setting.num_nodes // 16)
        setting = replace(setting, first_nodes=first, shrinks=True)
    return setting


def simulated(setting: Setting, seed: int) -> dict[str, Any]:
    """Run one setting; return where the time went, and what the driver really took."""
    before = _peak_mib()
    cluster = SimulatedCluster(setting, seed)
    driver = cluster.driver(lambda state, totals: state.steps_done)
    began = time.thread_time()
    ended = ""
    try:
        driver.run()
    except ClusterError as error:
        ended = str(error)
    cpu = time.thread_time() - began
    spent = cluster.close()
    return {
        "efficiency": spent.useful / spent.offered,
        **{part: getattr(spent, part) / spent.offered for part in PARTS},
        "hours": cluster.now / 3600,
        "gpu_hours": spent.offered / 3600,
        "calls": cluster.calls,
        "waits": cluster.waits,
        "nodes_lost": cluster.nodes_lost,
        "blocks_lost": cluster.blocks_lost,
        "driver_busy": cluster.driver_busy_seconds / cluster.now,
        "driver_cpu_seconds": cpu - cluster.own_cpu_seconds,
        "simulation_cpu_seconds": cluster.own_cpu_seconds,
        "peak_mib": _peak_mib() - before,
        "ended": ended,
        "setting": asdict(setting),
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _apart(case: str, gpus: int, options: argparse.Namespace) -> dict[str, Any]:
    """Simulate in a process of its own, so that its peak of memory is its own too."""
    share = gpus / max(options.gpus)
    words = ["--only", case, "--gpus", str(gpus), "--blocks", str(round(options.blocks * share))]
    words += ["--losses", str(options.losses * share), "--seed", str(options.seed), "--one"]
    # Each lost worker has its line in the log.
    done = subprocess.run(
        [sys.executable, __file__, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    found: dict[str, Any] = json.loads(done.stdout)
    return {"case": case, "gpus": gpus, **found}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    heads = [
        "GPUs",
        "case",
        "hours",
        "efficiency",
        *PARTS,
        "blocks lost",
        "driver busy",
        "driver CPU, s",
    ]
    lines = [
        "| " + " | ".join([*heads, "us a call", "MiB"]) + " |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for row in rows:
        cells = [f"{row['gpus']:,}", row["case"], f"{row['hours']:.2f}", f"{row['efficiency']:.1%}"]
        cells += [f"{row[part]:.2%}" for part in PARTS]
        cells += [f"{row['blocks_lost']:,}", f"{row['driver_busy']:.0%}"]
        cells += [f"{row['driver_cpu_seconds']:.1f}"]
        cells += [f"{1e6 * row['driver_cpu_seconds'] / row['calls']:.0f}", f"{row['peak_mib']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
        if row["ended"]:
            lines.append(f"| | ended before its end: {row['ended']} |")
    return "\n".join(lines)


# The report's colours (evaluation/templates/report.css); a picture in a page follows the reader's own
# choice of light or dark.
COLOURS = """<style>
:root { --ink: #1c1c1a; --muted: #5f5e58; --grid: #deddd6; --paper: #fdfcf8; --series-1: #0072b2;
--series-2: #d55e00; --series-3: #009e73; --series-4: #cc79a7; --series-5: #8a6d00; --series-6: #5b4db0;
--series-7: #5f5e58 }
@media (prefers-color-scheme: dark) { :root { --ink: #eceae3; --muted: #a5a399; --grid: #3a3a36;
--paper: #191918; --series-1: #56b4e9; --series-2: #f08c3a; --series-3: #2bc49a; --series-4: #dd9bc1;
--series-5: #e6c84f; --series-6: #a79cf0; --series-7: #a5a399 } }
</style><rect width="100%" height="100%" fill="var(--paper)"/>"""


NAMES = {
    "slow": "slower GPUs",
    "lost": "lost steps",
    "driver": "driver",
    "start": "start-up",
    "vacant": "no worker",
    "tail": "no block left",
}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw what the offered GPU time was lost to, a bar for each case and number of GPUs."""
    cases = [case for case in CASES if any(row["case"] == case for row in rows)]
    ordered = sorted(rows, key=lambda row: (cases.index(row["case"]), row["gpus"]))
    positions = [-(n + 0.6 * cases.index(row["case"])) for n, row in enumerate(ordered)]

    def paint(axes: Axes) -> None:
        starts = [0.0] * len(ordered)
        for number, (part, name) in enumerate(NAMES.items()):
            shares = [100 * row[part] for row in ordered]
            axes.barh(positions, shares, 0.8, starts, color=SERIES[number], label=name)
            starts = [start + share for start, share in zip(starts, shares, strict=True)]
        for position, start, row in zip(positions, starts, ordered, strict=True):
            text = f"{row['efficiency']:.1%} useful"
            axes.annotate(
                text, (start, position), (4, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.set_yticks(positions, [f"{row['case']}  {row['gpus']:>5,}" for row in ordered])
        axes.set_xlim(0, 1.25 * max(starts))
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("lost share of the offered GPU time, %")
        legend(axes, 3)

    words = "; ".join(f"{r['case']} {r['gpus']} GPUs {r['efficiency']:.1%} useful" for r in ordered)
    size = (5.6, 1.1 + 0.21 * len(ordered))
    made = draw("Simulated clusters", f"What the GPU time was lost to. {words}.", paint, size)
    head, rest = made.svg.split(">", 1)
    box = head.split('viewBox="')[1].split('"')[0].split()
    outer = f' xmlns="http://www.w3.org/2000/svg" width="{box[2]}" height="{box[3]}"'
    text = head.replace("<svg", "<svg" + outer, 1) + ">" + COLOURS + rest
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=_numbers, default="8,64,512,4096")
    parser.add_argument("--blocks", type=int, default=200_000, help="for the largest cluster")
    parser.add_argument(
        "--losses", type=float, default=1.0, help="nodes a minute, the largest cluster"
    )
    parser.add_argument("--only", default=",".join(CASES), help="cases, by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, help="where the plot goes (SVG)")
    parser.add_argument("--from", dest="source", type=Path, help="rows of an earlier --json")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ray-costs", action="store_true")
    parser.add_argument("--store-costs", action="store_true")
    parser.add_argument("--confirm", action="store_true")
    parser.add_argument("--arithmetic", action="store_true")
    parser.add_argument("--price", type=float, default=3.5, help="money per GPU-hour")
    parser.add_argument("--peak", type=float, default=494.5, help="TFLOP/s of a GPU, dense")
    parser.add_argument("--share", type=float, default=0.4, help="of the peak, assumed")
    options = parser.parse_args()
    cases = options.only.split(",")
    if unknown := sorted(set(cases) - set(CASES)):
        parser.error(f"--only knows {', '.join(CASES)}, found {', '.join(unknown)}")
    for name in ("confirm", "ray_costs", "store_costs"):
        if getattr(options, name):
            from benchmarks import simulation_confirmed

            getattr(simulation_confirmed, name)()
            return
    if options.arithmetic:
        from benchmarks.recipes_at_scale import arithmetic

        arithmetic(options.peak, options.share, options.price)
        return
    if options.one:
        setting = setting_of(cases[0], options.gpus[0], options.blocks, options.losses)
        print(json.dumps(simulated(setting, options.seed)))
        return
    if options.source is not None:
        rows = json.loads(options.source.read_text(encoding="utf-8"))
    else:
        # One node that is taken away ends a run, and cannot be halved.
        asked = [(case, gpus) for case in cases for gpus in options.gpus]
        asked = [(c, g) for c, g in asked if g > 8 or c in ("calm", "stragglers")]
        rows = []
        for case, gpus in asked:
            rows.append(_apart(case, gpus, options))
            if not options.json:
                print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    if options.plot is not None:
        plot(rows, options.plot)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"load when it ended {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    print(table(rows))


if __name__ == "__main__":
    main()
