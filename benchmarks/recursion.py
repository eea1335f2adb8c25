"""Time of one Hessian-vector product per tangent, against what a person would do instead.

    python benchmarks/recursion.py [--device cuda] [--models logistic,mlp,...] [--repeats 5]
    python benchmarks/recursion.py --shares [--models ...]

Needs torch, torchvision, numpy and pydantic. Compared in one process, interleaved, medians:

- our forms: r-operator, forward-over-reverse, with the chunk that a run would choose;
- loop: the graph once per step, then one autograd.grad per tangent (the released code's way);
- gradient: one plain gradient of the minibatch;
- leave-one-out: one gradient at each unit's own weights, K units at once.

With `--shares`: at minibatches of 32 to 2,048, which share of the machine's rate of matrix products a
step's products reach, by the arithmetic that torch counts in the R-operator, one pass for all; the
explicit form, where it applies, is given by its time alone.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.approximators.leave_one_out import gradients_without
from pipeline.config import Form, RetrainingConfig
from pipeline.heap import keep_freed_memory
from pipeline.hessian.chunking import tangents_per_chunk
from pipeline.hessian.hvp import Network
from pipeline.hessian.roperator import Pairs
from pipeline.models.losses import CrossEntropy
from pipeline.models.minibatch import Minibatch
from pipeline.models.networks import cnn, lenet, logistic, mlp
from pipeline.models.parameters import flat_parameters
from pipeline.run.coefficients import Coefficients
from pipeline.training.step import step_context

# K tangents, B minibatch rows, P parameters

TURN_SECONDS = 0.1
# Sides of the matrices whose product is the machine's rate.
SQUARE = 1024


@dataclass(frozen=True)
class Case:
    """A model, the shape of its inputs, K and |B|."""

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    tangents: int
    batch: int
    classes: int = 10


def cases(on_gpu: bool) -> list[Case]:
    """Return the sizes that docs/benchmarks.md reports."""
    digit, mnist, photo = (64,), (1, 28, 28), (3, 32, 32)
    return [
        Case("logistic", lambda: logistic(mnist, 10), mnist, 256, 32),
        Case("mlp", lambda: mlp(digit, 10, (128, 64), "tanh"), digit, 256, 64),
        Case("cnn", lambda: cnn(mnist, 10, "tanh"), mnist, 64, 64),
        Case("lenet", lambda: lenet(mnist, 10, "tanh"), mnist, 64, 64),
        Case(
            "resnet18",
            lambda: resnet18(num_classes=10).eval(),
            photo,
            64 if on_gpu else 8,
            256 if on_gpu else 32,
        ),
    ]


def products(
    network: Network, chunk: int, w_P: Tensor, batch: Minibatch, rows: Tensor
) -> Callable[[], None]:
    """Return a function that makes all K products in chunks, from one linearisation."""

    def run() -> None:
        linearization = network.linearize(w_P, batch)
        linearization.gradient_sum()
        for tangents_KP in rows.split(chunk):
            linearization.hessian_products(tangents_KP, None)

    return run


def leave_one_out(
    network: Network, w_P: Tensor, batch: Minibatch, rows: Tensor
) -> Callable[[], None]:
    """Return a function that makes one gradient at each unit's own weights, a few units at once."""
    context = step_context(network, w_P, batch, 0.1, Coefficients.alike())
    no_pairs = Pairs(*(torch.empty(0, dtype=torch.int64, device=w_P.device) for _ in range(2)))

    def run() -> None:
        for rows_KP in rows.split(8):
            gradients_without(rows_KP, context, no_pairs, RetrainingConfig())

    return run


def measure(case: Case, device: torch.device, repeats: int) -> dict[str, float]:
    """Return median milliseconds: per tangent, or of one gradient."""
    torch.manual_seed(0)
    module = case.build().to(device)
    inputs = torch.randn(case.batch, *case.inputs, device=device)
    batch = Minibatch(inputs, torch.randint(0, 10, (case.batch,), device=device))
    w_P = flat_parameters(module)
    rows_KP = torch.randn(case.tangents, len(w_P), device=device)
    forms: list[Form] = ["r-operator", "forward-over-reverse", "reverse"]
    if case.name == "resnet18" and device.type == "cpu":
        forms.remove("forward-over-reverse")  # minutes, and never the choice there
    networks = {form: Network.of(module, CrossEntropy(), form) for form in forms}
    chunk = tangents_per_chunk(networks["r-operator"], inputs[:1], case.batch, case.tangents)
    runs = {form: products(net, chunk, w_P, batch, rows_KP) for form, net in networks.items()}
    runs["loop"] = runs.pop("reverse")
    plain = networks["reverse"]

    def gradient() -> None:
        plain.linearize(w_P, batch).gradient_sum()

    runs["gradient"] = gradient
    runs["leave-one-out"] = leave_one_out(plain, w_P, batch, rows_KP)
    times = interleaved(runs, device, repeats)
    per = {name: 1 if name == "gradient" else case.tangents for name in times}
    result = {name: 1e3 * seconds / per[name] for name, seconds in times.items()}
    return result | {"P": len(w_P), "chunk": chunk}


def share(case: Case, batch_size: int, device: torch.device, repeats: int) -> list[str]:
    """Return a row of the table of shares: rates are GFLOP/s, times microseconds per product."""
    torch.manual_seed(0)
    module = case.build().to(device)
    inputs = torch.randn(batch_size, *case.inputs, device=device)
    targets = torch.randint(0, case.classes, (batch_size,), device=device)
    batch, w_P = Minibatch(inputs, targets), flat_parameters(module)
    rows_KP = torch.randn(case.tangents, len(w_P), device=device)
    network = Network.of(module, CrossEntropy(), "r-operator")
    chunk = tangents_per_chunk(network, inputs[:1], batch_size, case.tangents)
    with FlopCounterMode(display=False) as counter:
        network.linearize(w_P, batch).hessian_products(rows_KP[:chunk], None)
        counted = counter.get_total_flops() / chunk
    left, right = torch.randn(2, SQUARE, SQUARE, device=device)
    runs: dict[str, Callable[[], None]] = {
        "products": products(network, chunk, w_P, batch, rows_KP),
        "matmul": partial(_multiply, left, right),
    }
    explicit = 2 * len(w_P) <= min(batch_size, case.tangents)
    if explicit:
        matrix = Network.of(module, CrossEntropy(), "explicit")
        runs["explicit"] = products(matrix, case.tangents, w_P, batch, rows_KP)
    seconds = interleaved(runs, device, repeats)
    each = seconds["products"] / case.tangents
    peak = 2 * SQUARE**3 / seconds["matmul"]
    shown = f"{1e6 * seconds['explicit'] / case.tangents:.3g}" if explicit else "-"
    return [case.name, f"{len(w_P):,}", str(batch_size), str(chunk), f"{1e6 * each:.3g}",
            f"{counted / each / 1e9:.3g}", f"{peak / 1e9:.3g}", f"{counted / each / peak:.0%}",
            shown]  # fmt: skip


def _multiply(left: Tensor, right: Tensor) -> None:
    torch.mm(left, right)


def print_shares(chosen: set[str], device: torch.device, repeats: int) -> None:
    """Print the table of shares."""
    print(
        "| model | P | B | chunk | us per product | GFLOP/s | matrix products' | share | explicit, us |"
    )
    print("|" + "---|" * 9)
    tabular = Case("tabular", lambda: nn.Linear(20, 3), (20,), 1024, 0, 3)
    for case in [tabular, *cases(device.type == "cuda")]:
        if chosen and case.name not in chosen:
            continue
        for batch_size in (32, 128, 512, 2048):
            with torch.no_grad():
                print(f"| {' | '.join(share(case, batch_size, device, repeats))} |", flush=True)


def interleaved(
    runs: dict[str, Callable[[], None]], device: torch.device, repeats: int
) -> dict[str, float]:
    """Return each run's median seconds; all are warmed up, then take turns.

    A turn repeats its run for `TURN_SECONDS`, as the steps of a recursion follow each other: a single
    short run would mostly measure the caches that the run before it left cold.
    """

    def timed(run: Callable[[], None], times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / times

    for run in runs.values():
        timed(run, 1)
    turns = {name: max(1, int(TURN_SECONDS / timed(run, 1))) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            samples[name].append(timed(run, turns[name]))
    return {name: statistics.median(values) for name, values in samples.items()}


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", default="")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shares", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    chosen = set(filter(None, options.models.split(",")))
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    unit = "one pass for all" if options.shares else "ms per tangent"
    print(f"{machine}, torch {torch.__version__}, {options.threads} threads, {unit}\n")
    if options.shares:
        print_shares(chosen, device, options.repeats)
        return
    print("| model | P | K | B | chunk | r-operator | f-o-r | loop | gradient | leave-one-out |"
          " loop / best | best / gradient |")  # fmt: skip
    print("|" + "---|" * 12)
    for case in cases(device.type == "cuda"):
        if chosen and case.name not in chosen:
            continue
        with torch.no_grad():
            t = measure(case, device, options.repeats)
        best = min(t["r-operator"], t.get("forward-over-reverse", float("inf")), t["loop"])
        cells = [t["r-operator"], t.get("forward-over-reverse"), t["loop"], t["gradient"]]
        shown = [f"{c:.4g}" if c is not None else "-" for c in [*cells, t["leave-one-out"]]]
        print(f"| {case.name} | {t['P']:,.0f} | {case.tangents} | {case.batch} | {t['chunk']} | "
              f"{' | '.join(shown)} | {t['loop'] / best:.2f} | {best / t['gradient']:.2f} |",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
