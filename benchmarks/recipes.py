"""How near deletions come to retraining, by training recipe, engine and size.

    python benchmarks/recipes.py [--sets 8] [--recipes adamw,cosine] [--augment]

A tanh perceptron (64, 32) on 600 of scikit-learn's digits, 15 epochs in minibatches of 32, without 1,
8, 30 and 120 units; and the same and a small network with convolutions on 400, without 1, 8, 20 and
40. Prints the median relative error |unlearned - retrained| over |trained - retrained| of random
sets, with and without the exponent of the mass correction, and with `--speed` the recursion's time
beside SGD's. With `--augment` each step shifts every picture by up to a pixel and adds noise to it.
"""

import argparse
import time
from math import prod
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.approximators.block import BlockRecursion
from pipeline.config import RunConfig
from pipeline.deletion.weights import (
    DeletionState,
    apply_deletion,
    deletion_rule,
    unit_weights,
)
from pipeline.evaluation.accuracy import held_out_quality
from pipeline.run.problem import Problem
from pipeline.training.retraining import retrain
from pipeline.training.train import record

PERCEPTRON = {
    "data": {"source": "digits", "num_train": 600},
    "model": {"name": "mlp", "hidden": [64, 32], "activation": "tanh"},
}
FEWER = {**PERCEPTRON, "data": {"source": "digits", "num_train": 400}}
CNN = {
    "data": {"source": "digits", "num_train": 400},
    "model": {"name": "cnn", "activation": "tanh", "pooling": "average"},
}
TRAINING = {"epochs": 15, "batch_size": 32, "learning_rate": 1e-3, "optimizer": "adamw"}
COSINE = {**TRAINING, "schedule": "cosine", "warmup_steps": 28}
SMALL = {**PERCEPTRON, "data": {"source": "digits", "num_train": 400}}
NORMALISED = {**SMALL, "model": {"name": "benchmarks.recipes:normalised"}}
DROPPING = {**SMALL, "model": {"name": "benchmarks.recipes:dropping"}}
SGD = {**TRAINING, "optimizer": "sgd", "learning_rate": 0.1}
SIZES = (1, 8, 20, 40)
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, ...]]] = {
    "sgd": (PERCEPTRON, {**TRAINING, "optimizer": "sgd", "learning_rate": 0.1}, (1, 8, 30, 120)),
    "adamw": (PERCEPTRON, TRAINING, (1, 8, 30, 120)),
    "cosine": (PERCEPTRON, COSINE, (1, 8, 30, 120)),
    "norm": (NORMALISED, SGD, SIZES),
    "norm-adamw": (NORMALISED, COSINE, SIZES),
    "dropout": (DROPPING, SGD, SIZES),
    "dropout-adamw": (DROPPING, COSINE, SIZES),
    "sgd-400": (FEWER, {**TRAINING, "optimizer": "sgd", "learning_rate": 0.1}, (1, 8, 20, 40)),
    "cnn-sgd": (CNN, {**TRAINING, "optimizer": "sgd", "learning_rate": 0.3}, (1, 8, 20, 40)),
    "cnn": (CNN, {**COSINE, "learning_rate": 3e-3, "warmup_steps": 19}, (1, 8, 20, 40)),
}
AUGMENTATION = [{"crop": {"padding": 1}}, {"noise": {"deviation": 0.1}}]


def normalised(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return a perceptron with batch normalisation in train mode."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in ((prod(input_shape), 64), (64, 32)):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(32, num_classes))


def dropping(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return a perceptron with dropout behind each hidden layer."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in ((prod(input_shape), 64), (64, 32)):
        layers += [nn.Linear(inputs, outputs), nn.Tanh(), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Linear(32, num_classes))


def measured(
    name: str, engine: str, num_sets: int, exponents: tuple[float, ...], *, augment: bool
) -> list[str]:
    """Return the table's rows of a recipe: one for each exponent."""
    sections, training, sizes = RECIPES[name]
    data = {**sections["data"], "augment": AUGMENTATION if augment else None}
    recursion = {"engine": engine}
    config = RunConfig.from_values(
        {**sections, "data": data, "training": training, "recursion": recursion}
    )
    problem = Problem.of(config)
    with TemporaryDirectory() as folder:
        trajectory = record(problem, Path(folder))
        began = time.perf_counter()
        units = range(len(problem.data.units))
        block = BlockRecursion(problem, trajectory, units)
        block.advance(trajectory.num_steps)
        seconds = time.perf_counter() - began
        rows_NP, trained_P = block.rows().astype(np.float64), trajectory.trained().numpy()
        schedule = trajectory.schedule
        accuracy = held_out_quality(problem, trajectory.trained()).accuracy
    generator = np.random.default_rng(0)
    # Running statistics are on another scale than parameters.
    parameters = slice(problem.network.layout.trained.num_parameters)
    errors: dict[float, list[str]] = {exponent: [] for exponent in exponents}
    for size in sizes:
        found: dict[float, list[float]] = {exponent: [] for exponent in exponents}
        for _ in range(num_sets):
            chosen = np.sort(generator.choice(len(units), size, replace=False))
            mask = torch.zeros(len(units), dtype=torch.bool)
            mask[chosen] = True
            retrained_P = retrain(problem, schedule, mask).numpy()
            for exponent in exponents:
                setting = config.recursion.model_copy(update={"mass_exponent": exponent})
                rule = deletion_rule(config.model_copy(update={"recursion": setting}), len(units))
                weights = np.array(unit_weights(rule, [1] * size), dtype=np.float64)
                state = DeletionState(weights @ rows_NP[chosen], size)
                unlearned_P = apply_deletion(rule, trained_P, state)
                distance = np.linalg.norm((unlearned_P - retrained_P)[parameters])
                moved = np.linalg.norm((trained_P - retrained_P)[parameters])
                found[exponent].append(float(distance / moved))
        for exponent in exponents:
            errors[exponent].append(f"{median(found[exponent]):.3f}")
    return [
        f"| {name} | {engine} | {rho:g} | {accuracy:.3f} | {' / '.join(by_size)} | {seconds:.0f} |"
        for rho, by_size in errors.items()
    ]


def speed(sections: dict[str, Any], num_steps: int = 40, repeats: int = 5) -> tuple[float, float]:
    """Return the median seconds of the recursion's first steps with SGD and with AdamW, interleaved."""
    seconds: dict[str, list[float]] = {"sgd": [], "adamw": []}
    with TemporaryDirectory() as folder:
        blocks = {}
        for optimizer in seconds:
            training = {**TRAINING, "epochs": 5, "optimizer": optimizer}
            problem = Problem.of(RunConfig.from_values({**sections, "training": training}))
            trajectory = record(problem, Path(folder) / optimizer)
            blocks[optimizer] = (problem, trajectory, range(len(problem.data.units)))
        for _ in range(repeats + 1):
            for optimizer, (problem, trajectory, units) in blocks.items():
                block = BlockRecursion(problem, trajectory, units)
                block.advance(num_steps // 2)
                began = time.perf_counter()
                block.advance(num_steps)
                seconds[optimizer].append(time.perf_counter() - began)
    # The first of each warms up.
    return median(seconds["sgd"][1:]), median(seconds["adamw"][1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=8)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--engines", default="hvp,leave-one-out")
    parser.add_argument("--speed", action="store_true", help="time only")
    parser.add_argument("--augment", action="store_true", help="shifts and noise at each step")
    asked = parser.parse_args()
    if asked.speed:
        for name, sections in (("perceptron", PERCEPTRON), ("convolutions", CNN)):
            sgd, adamw = speed(sections)
            print(f"{name}: sgd {sgd:.2f} s, adamw {adamw:.2f} s, ratio {adamw / sgd:.2f}")
        return
    sizes = "1 / 8 / 30 / 120; of 400: 1 / 8 / 20 / 40"
    print(f"| recipe | engine | exponent | accuracy | error ({sizes}) | s |")
    print("|---|---|---|---|---|---|")
    for name in asked.recipes.split(","):
        exponents = (1.0,) if "sgd" in name else (1.0, 0.5)
        for engine in asked.engines.split(","):
            for row in measured(name, engine, asked.sets, exponents, augment=asked.augment):
                print(row, flush=True)


if __name__ == "__main__":
    main()
