"""How well a pilot predicts the error of the full run's trial deletions, by recipe, engine and size.

    python benchmarks/pilot.py [--sets 8] [--recipes "relu;cnn"]

Each recipe is piloted with the standard budget; then it is trained, the approximators of every unit
are computed and stored with both engines, and `--sets` other random sets of each size are deleted and
compared with retraining, as `unlearn run` does. Prints for each recipe, engine and size the pilot's
figure and its range beside the median of the trials, and in the end how many lie within a factor.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline import precompute, train
from pipeline.config import RunConfig
from pipeline.evaluation.formats import duration
from pipeline.evaluation.pilot import Pilot
from pipeline.evaluation.trials import draw_sets, local_sum, run_trials
from pipeline.run.store import open_store
from storage.errors import SumOverflowError

SIX_HUNDRED = {"source": "digits", "num_train": 600}
FOUR_HUNDRED = {"source": "digits", "num_train": 400}
SGD = {"epochs": 15, "batch_size": 32, "learning_rate": 0.1}
ADAMW = {"epochs": 15, "batch_size": 32, "learning_rate": 1e-3, "optimizer": "adamw"}
# Errors below are rounding in float32, whose size no pilot has to foretell.
SMALLEST = 1e-3

Recipe = tuple[dict[str, Any], dict[str, Any], dict[str, Any], tuple[int, ...]]


def perceptron(activation: str) -> dict[str, Any]:
    """Return the model of most recipes."""
    return {"name": "mlp", "hidden": [64, 32], "activation": activation}


CNN = {"name": "cnn", "activation": "tanh", "pooling": "average"}
RECIPES: dict[str, Recipe] = {
    "softmax": (SIX_HUNDRED, {"name": "logistic"}, SGD, (1, 30, 120)),
    "wine": (
        {"source": "wine"},
        {"name": "mlp", "hidden": [16], "activation": "tanh"},
        {**SGD, "epochs": 30, "batch_size": 16},
        (1, 7, 28),
    ),
    "tanh": (SIX_HUNDRED, perceptron("tanh"), SGD, (1, 8, 30, 120)),
    "tanh, momentum": (
        SIX_HUNDRED,
        perceptron("tanh"),
        {**SGD, "learning_rate": 0.03, "momentum": 0.9},
        (1, 30, 120),
    ),
    "tanh, rate .5": (
        SIX_HUNDRED,
        perceptron("tanh"),
        {**SGD, "learning_rate": 0.5},
        (1, 30, 120),
    ),
    "silu": (SIX_HUNDRED, perceptron("silu"), SGD, (1, 30, 120)),
    "tanh, adamw": (SIX_HUNDRED, perceptron("tanh"), ADAMW, (1, 8, 30, 120)),
    "tanh, adamw, cosine": (
        SIX_HUNDRED,
        perceptron("tanh"),
        {**ADAMW, "schedule": "cosine", "warmup_steps": 28},
        (1, 30, 120),
    ),
    "relu": (SIX_HUNDRED, perceptron("relu"), SGD, (1, 8, 30, 120)),
    "relu, rate .3": (
        SIX_HUNDRED,
        perceptron("relu"),
        {**SGD, "learning_rate": 0.3},
        (1, 30, 120),
    ),
    "relu, adamw": (SIX_HUNDRED, perceptron("relu"), ADAMW, (1, 30, 120)),
    "cnn": (FOUR_HUNDRED, CNN, {**SGD, "learning_rate": 0.3, "epochs": 12}, (1, 20, 80)),
    "cnn, relu": (
        FOUR_HUNDRED,
        {"name": "cnn", "activation": "relu"},
        {**SGD, "epochs": 10},
        (1, 20, 80),
    ),
}


def config_of(name: str, engine: str, repeats: int) -> RunConfig:
    """Return a recipe's configuration."""
    data, model, training, sizes = RECIPES[name]
    return RunConfig.from_values(
        {
            "name": "recipe",
            "data": data,
            "model": model,
            "training": training,
            "recursion": {"engine": engine},
            "evaluation": {"deletions": list(sizes), "repeats": repeats},
        }
    )


def trials(name: str, engine: str, repeats: int, folder: Path) -> tuple[dict[int, float], float]:
    """Return the median error of the full run by size, and the seconds of its precompute."""
    run = train(config_of(name, engine, repeats), folder)
    problem = run.problem()
    began = time.perf_counter()
    precompute(run)
    seconds = time.perf_counter() - began
    store = open_store(run, problem)
    sets = draw_sets(problem.config.evaluation, range(len(problem.data.units)), seed=5)
    try:
        entries = run_trials(run, problem, sets, local_sum(store))
    except SumOverflowError:
        # Approximators grew so far that no deletion could be carried out.
        return {len(of_size[0]): float("inf") for of_size in sets}, seconds
    return {entry["units"]: entry["relative_error"] for entry in entries}, seconds


def compared(name: str, repeats: int) -> list[tuple[str, float]]:
    """Print a recipe's rows; return whether each was measured, and its factor."""
    factors = []
    with TemporaryDirectory() as folder:
        began = time.perf_counter()
        pilot = Pilot.of(config_of(name, "auto", repeats), Path(folder) / "pilot")
        trajectory = pilot.train()
        result = pilot.result(trajectory, pilot.measure(trajectory))
        seconds = time.perf_counter() - began
        full: dict[str, float] = {}
        for engine, entries in result["engines"].items():
            measured, full[engine] = trials(name, engine, repeats, Path(folder) / engine)
            for entry in entries:
                error = measured.get(entry["units"])
                if error is None:
                    continue
                infinite = float("inf")
                found = entry["relative_error"] or infinite
                low, high = (end or infinite for end in entry["range"])
                factor = max(found / error, error / found) if error > SMALLEST else float("nan")
                if SMALLEST < error < float("inf"):
                    factors.append((entry["how"], factor))
                inside = "" if low <= error <= high or error <= SMALLEST else ", outside"
                print(
                    f"| {name} | {engine} | {entry['units']} | {found:.3f} ({low:.3f}-{high:.3f}"
                    f"{inside}) | {entry['how']} | {error:.3f} | {factor:.2f} |",
                    flush=True,
                )
    print(
        f"# {name}: accuracy {result['accuracy']:.3f}, roughness {result['roughness']:.1f}, pilot "
        f"{duration(seconds)} ({result['retrainings']} retrainings), precompute "
        + ", ".join(f"{engine} {duration(took)}" for engine, took in full.items())
        + f"; recommended {result['recommended']}: {result['verdict']}",
        flush=True,
    )
    return factors


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=8)
    parser.add_argument("--recipes", default=";".join(RECIPES), help="separated by semicolons")
    asked = parser.parse_args()
    print("| recipe | engine | deleted | pilot | how | trials | factor |")
    print("|---|---|---|---|---|---|---|")
    factors: list[tuple[str, float]] = []
    for name in asked.recipes.split(";"):
        factors += compared(name, asked.sets)
    for how in ("measured", "estimated"):
        of_kind = [factor for kind, factor in factors if kind == how]
        within = sum(factor <= 1.5 for factor in of_kind)
        if of_kind:
            print(
                f"# {how}: {within} of {len(of_kind)} within 1.5, largest factor {max(of_kind):.2f}"
            )


if __name__ == "__main__":
    main()
