"""What a GPU does with this program: correctness, rates, memory, and what stands in the way.

    python benchmarks/gpu.py                    one CUDA GPU, at most eight minutes
    python benchmarks/gpu.py --seconds 900 --json gpu.json
    python benchmarks/gpu.py --only throughput,recipe
    python benchmarks/gpu.py --device cpu --quick      every section at tiny sizes, without a GPU

Needs torch and numpy alone (torchvision is used where it is there), and Linux. Prints one table in
Markdown; progress goes to standard error. Each section runs in a process of its own with a share of
the time, and what it has found so far counts when its time is up: so a section that fails, hangs or
spoils its CUDA context costs its own figures alone.

Operations are counted by formula, 2 per multiply-add of linear layers and convolutions: a tangent
takes six products as large as each layer's forward pass, two for the first layer; kernel taps that meet
only padding are not counted. *share* is of a large matrix product in the same precision, measured in
the same process. bfloat16 is the tangents' alone: parameters and approximators stay float32.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from multiprocessing.connection import Connection
from pathlib import Path

# As every command of the program: cuBLAS is deterministic with a fixed workspace alone.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Asking whether there is a GPU must not start CUDA here: processes forked afterwards could not use it.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import torch
import torchvision_resnet

# Before anything of the program, which knows torchvision's classes by name.
STANDS_IN = torchvision_resnet.install()

from gpu_sections import correctness, encoding, engines, layers, machine, throughput
from gpu_sections.bench import Bench, Row

from pipeline.heap import keep_freed_memory

# A section stops by itself after this share of its time; the rest is for the call under way.
STOP_SHARE = 0.85


@dataclass(frozen=True)
class Section:
    """A part of the benchmark, and its share of the time."""

    name: str
    run: Callable[[Bench], None]
    share: float


SECTIONS = (
    Section("machine", machine.machine, 15),
    Section("correctness", correctness.correctness, 50),
    Section("throughput", throughput.throughput, 170),
    Section("recipe", throughput.recipe, 40),
    Section("engines", engines.engines, 50),
    Section("variants", engines.variants, 45),
    Section("layers", layers.layers, 30),
    Section("encoding", encoding.encoding, 15),
    Section("compile", engines.compiled, 65),
)


def in_child(name: str, options: argparse.Namespace, seconds: float, out: Connection) -> None:
    """Run one section in this process and send its rows, one JSON text each."""
    section = next(section for section in SECTIONS if section.name == name)

    def send(row: Row) -> None:
        out.send_bytes(json.dumps(asdict(row)).encode())

    if options.threads:
        torch.set_num_threads(options.threads)
    bench = Bench(
        section.name, options.device, options.quick, time.monotonic() + STOP_SHARE * seconds, send
    )
    with bench.guard("the section as a whole"):
        section.run(bench)
    out.close()


def run_section(section: Section, options: argparse.Namespace, seconds: float) -> list[Row]:
    """Run one section in a process of its own; return what it found within its time."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context(options.start)
    child = context.Process(target=in_child, args=(section.name, options, seconds, writer))
    child.start()
    writer.close()
    rows, deadline = [], time.monotonic() + seconds
    try:
        while reader.poll(max(0.0, deadline - time.monotonic())):
            rows.append(Row(**json.loads(reader.recv_bytes())))
            print(f"  {rows[-1].line()}", file=sys.stderr, flush=True)
        rows.append(Row(section.name, "-", note=f"stopped after {seconds:.0f} s"))
    except EOFError:  # the child has closed its end
        child.join(max(1.0, deadline - time.monotonic()))
        if child.exitcode:
            rows.append(Row(section.name, "-", note=f"failed: ended with status {child.exitcode}"))
    if child.is_alive():
        child.kill()
    child.join()
    return rows


def _uses_gpu() -> None:
    torch.zeros(1, device="cuda").item()


def start_method(device: str) -> str:
    """Return how sections start: forked where that works, else from nothing, which takes seconds.

    A forked process cannot use CUDA if anything has started it before.
    """
    if device == "cpu":
        return "fork"
    probe = multiprocessing.get_context("fork").Process(target=_uses_gpu)
    probe.start()
    probe.join(60)
    if probe.is_alive():
        probe.kill()
        probe.join()
    return "fork" if probe.exitcode == 0 else "spawn"


def run_all(options: argparse.Namespace) -> list[Row]:
    """Run the chosen sections; time that one leaves is shared among those behind it."""
    chosen = [s for s in SECTIONS if not options.only or s.name in options.only]
    end, rows = time.monotonic() + options.seconds, []
    for place, section in enumerate(chosen):
        left = end - time.monotonic()
        seconds = left * section.share / sum(s.share for s in chosen[place:])
        print(f"{section.name}: at most {seconds:.0f} s", file=sys.stderr, flush=True)
        rows += run_section(section, options, max(1.0, seconds))
    rows.append(Row("transformer", "LoRA", note="skipped: the repository has no transformer yet"))
    return rows


def thinned(rows: list[Row]) -> list[Row]:
    """Return the rows for the table: of a growing K the first, the fastest and the last alone."""
    series: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.section == "throughput" and row.form == "r-operator" and row.ms is not None:
            series.setdefault((row.case, row.precision), []).append(row)
    left_out = []
    for points in series.values():
        best = min(points, key=lambda row: row.ms)
        left_out += [row for row in points if row not in (points[0], best, points[-1])]
    return [row for row in rows if row.shown and row not in left_out]


def table(rows: list[Row]) -> str:
    """Return rows as one table in Markdown."""
    titles = [field.name for field in fields(Row) if field.name != "shown"]
    heads = [title.replace("_", " ") for title in titles]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    names = [section.name for section in SECTIONS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=460.0, help="for all sections together")
    parser.add_argument("--only", default="", help=f"sections, by commas: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether all works")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: torch's choice")
    parser.add_argument("--start", choices=("fork", "spawn"), help="of processes; default: a trial")
    parser.add_argument("--json", type=Path, help="write all rows here as well")
    options = parser.parse_args()
    options.only = [name for name in options.only.split(",") if name]
    if unknown := sorted(set(options.only) - set(names)):
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(names)}")
    if options.seconds <= 0:
        parser.error("--seconds must be above 0")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu --quick tries every section without one")
    keep_freed_memory()
    # It imports torch's compiler: once here, and not in every section's process.
    torch.use_deterministic_algorithms(True)
    began = time.monotonic()
    options.start = options.start or start_method(options.device)
    rows = run_all(options)
    about = (
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}, "
        f"{platform.machine()}{', without torchvision' if STANDS_IN else ''}; "
        f"`python benchmarks/gpu.py {' '.join(sys.argv[1:])}`, {time.monotonic() - began:.0f} s"
    )
    print(f"{about}\n\n{table(thinned(rows))}")
    if options.json:
        found = {"about": about, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
