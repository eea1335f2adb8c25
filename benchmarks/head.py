"""A trained head on frozen features: how close its recursion comes to the machine's matrix products.

    python benchmarks/head.py [--threads 1] [--repeats 9]     the recursion against a matrix product
    python benchmarks/head.py --end-to-end                    2,000 made-up units, 500 steps, Ray, store

The first compares, in one process and interleaved, medians: a float32 matrix product of the shapes
that a Hessian product of the head is made of, and whole steps of the recursion (Hessian products,
sources, update) for K units. 5,130 parameters (512 features, 10 classes), minibatches of 256.

The second predicts the time of a whole run from that rate, then runs it through Ray and the store.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.approximators.recursion import ChunkState, Conventions, advance
from pipeline.config import RunConfig
from pipeline.heap import keep_freed_memory
from pipeline.hessian.hvp import Network
from pipeline.hessian.roperator import Pairs
from pipeline.models.losses import CrossEntropy
from pipeline.models.minibatch import Minibatch
from pipeline.models.parameters import flat_parameters
from pipeline.run.coefficients import Coefficients
from pipeline.training.step import step_context

# K units, B minibatch rows, P parameters, D features, C classes

FEATURES, CLASSES, BATCH, UNITS = 512, 10, 256, 256
# Forward and backward of the R-operator: x dW^T and Rdelta^T x, 2 B D C operations each.
FLOP_PER_PRODUCT = 4 * BATCH * FEATURES * CLASSES


def configuration(path: str | None = None, epochs: int = 1) -> RunConfig:
    """Return a run of softmax regression on features, one unit per sample."""
    return RunConfig.from_values(
        {
            "name": "head",
            "data": {"source": "arrays", "path": path},
            "training": {
                "epochs": epochs,
                "batch_size": BATCH,
                "learning_rate": 0.1,
                "l2": 0.01,
            },
            "storage": {"encoding": "float16"},
            "cluster": {"num_workers": 2},
        }
    )


def features(num: int) -> tuple[Tensor, Tensor]:
    """Return made-up features of norm 1 and classes that depend on them."""
    generator = torch.Generator().manual_seed(0)
    x = nn.functional.normalize(torch.randn(num, FEATURES, generator=generator))
    return x, (x @ torch.randn(FEATURES, CLASSES, generator=generator)).argmax(1)


class Recursion:
    """One step of K units whose rows are all under way, as a worker computes it."""

    def __init__(self) -> None:
        config = configuration()
        self.conventions = Conventions(config.training, config.retraining, config.recursion)
        self.network = Network.of(nn.Linear(FEATURES, CLASSES), CrossEntropy())
        self.w_P = flat_parameters(self.network.module)
        self.batch = Minibatch(*features(BATCH))
        rows = 1e-3 * torch.randn(UNITS, len(self.w_P))
        self.state = ChunkState(0, rows, (), UNITS)
        # Of 50,000 samples a minibatch of 256 holds 1.3 of a chunk's 256.
        self.own = Pairs(torch.tensor([100]), torch.tensor([5]))

    def step(self) -> None:
        """Make the primal pass and advance the chunk."""
        context = step_context(
            self.network, self.w_P, self.batch, 0.01, Coefficients.alike(l2=0.01)
        )
        self.state = advance(self.state, context, self.own, self.conventions)


def rates(repeats: int) -> tuple[float, float]:
    """Return FLOP/s of a matrix product and of the recursion, medians, interleaved."""
    recursion = Recursion()
    weights = torch.randn(UNITS * CLASSES, FEATURES)
    inputs = recursion.batch[0].T.contiguous()
    products, steps = [], []
    with torch.no_grad():
        for _ in range(repeats + 2):
            began = time.perf_counter()
            weights @ inputs
            between = time.perf_counter()
            recursion.step()
            steps.append(time.perf_counter() - between)
            products.append(between - began)
    matrix = 2 * UNITS * CLASSES * FEATURES * BATCH / statistics.median(products[2:])
    return matrix, FLOP_PER_PRODUCT * UNITS / statistics.median(steps[2:])


def end_to_end(n: int, steps: int) -> None:
    """Run n units through Ray and the store; print predicted and taken seconds."""
    from cluster.console import Reporter
    from cluster.precompute_stage import precompute
    from cluster.whole_run import train

    steps_per_epoch = -(-n // BATCH)
    epochs = -(-steps // steps_per_epoch)
    with tempfile.TemporaryDirectory() as folder:
        x, y = (value.numpy() for value in features(n + 200))
        path = Path(folder) / "features.npz"
        np.savez(path, x=x[:n], y=y[:n], x_test=x[n:], y_test=y[n:])
        reporter = Reporter(quiet=True)
        run, problem = train(configuration(str(path), epochs), Path(folder) / "run", reporter)
        num_steps = run.trajectory().num_steps
        torch.set_num_threads(1)
        _, rate = rates(9)
        workers = problem.config.cluster.num_workers
        mean_batch = n / steps_per_epoch
        flop = FLOP_PER_PRODUCT * (mean_batch / BATCH) * n * num_steps
        predicted = flop / (rate * int(workers))
        precompute(run, problem, reporter)
        measured = json.loads((run.path / "measurements.json").read_text())["precompute"]
    print(f"{n} units x {num_steps} steps on {workers} workers: predicted {predicted:.1f} s, "
          f"taken {measured['seconds']:.1f} s ({measured['seconds'] / predicted:.2f})")  # fmt: skip


def main() -> None:
    """Parse the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--end-to-end", action="store_true")
    parser.add_argument("--units", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    keep_freed_memory()
    if options.end_to_end:
        end_to_end(options.units, options.steps)
        return
    torch.set_num_threads(options.threads)
    matrix, recursion = rates(options.repeats)
    print(f"torch {torch.__version__}, {platform.machine()}, {options.threads} threads, "
          f"P = {(FEATURES + 1) * CLASSES}, |B| = {BATCH}, K = {UNITS}")  # fmt: skip
    print(f"matrix product {matrix / 1e9:6.1f} GFLOP/s")
    print(f"recursion      {recursion / 1e9:6.1f} GFLOP/s  {recursion / matrix:.0%}  "
          f"{FLOP_PER_PRODUCT / recursion * 1e6:.0f} us per unit and step")  # fmt: skip
    hours = FLOP_PER_PRODUCT / recursion * 50_000 * 7_840 / 3_600
    print(f"50,000 units x 7,840 steps: {hours:.1f} hours")


if __name__ == "__main__":
    main()
