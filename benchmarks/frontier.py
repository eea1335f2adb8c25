"""Accuracy against the error of sets: how far ResNet-18 and the small CNN can be trained on digits.

    python benchmarks/frontier.py [--network resnet18|cnn] [--recipes 0,1]
    python benchmarks/frontier.py --single

The error is that of sums of exact rows, those of the leave-one-out engine: each part of the set is left
out by a retraining of its own, the corrected sum of what these move is compared with the retraining
without the whole set. No approximators are computed, so a recipe costs a few trainings. A part is a
user of ResNet-18's, and a quarter of the set of the CNN, for which it is a lower bound.

With `--single`: one user of a ReLU ResNet-18 in float32, the leave-one-out engine with each unit's own
weights and with differences from the run's, against retraining.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.approximators.block import BlockRecursion
from pipeline.approximators.groups import with_engine
from pipeline.config import RunConfig
from pipeline.deletion.weights import DeletionState, apply_deletion, deletion_rule, unit_weights
from pipeline.evaluation.accuracy import held_out_quality
from pipeline.heap import keep_freed_memory
from pipeline.run.problem import Problem
from pipeline.training.retraining import retrain
from pipeline.training.train import record

SHARE, PARTS = 5, 4
DIGITS = {
    "source": "digits",
    "image_size": 32,
    "num_train": 480,
    "unit": "user",
    "user_column": "writer",
}
RESNET = {
    "data": DIGITS,
    "model": {"name": "resnet18", "activation": "silu", "normalization": "group"},
    "retraining": {"denominator": "remaining"},
}
BLOCK = {"trainable": "layer4"}
SGD = {"batch_size": 32, "l2": 1e-4}
ADAMW = {"batch_size": 32, "optimizer": "adamw", "schedule": "cosine", "warmup_steps": 10}
CNN = {
    "data": {"source": "digits"},
    "model": {"name": "cnn", "activation": "tanh", "pooling": "average"},
    "training": {"epochs": 15, "batch_size": 32, "learning_rate": 0.1, "l2": 1e-3},
    "retraining": {"denominator": "remaining"},
}

Sections = dict[str, dict[str, Any]]
RECIPES: dict[str, list[tuple[str, Sections]]] = {
    "resnet18": [
        ("all, AdamW 3e-4 cosine, 6 epochs",
         {"training": {**ADAMW, "epochs": 6, "learning_rate": 3e-4}}),
        ("all, batch normalisation, AdamW 1e-3 cosine, 6 epochs",
         {"training": {**ADAMW, "epochs": 6, "learning_rate": 1e-3},
          "model": {"normalization": "batch"}}),
        ("layer4, SGD .01, 10 epochs",
         {"training": {**SGD, "epochs": 10, "learning_rate": 0.01}, "model": BLOCK}),
        ("layer4, SGD .05, 20 epochs",
         {"training": {**SGD, "epochs": 20, "learning_rate": 0.05}, "model": BLOCK}),
        ("layer4, SGD .2 cosine, 16 epochs",
         {"training": {**SGD, "epochs": 16, "learning_rate": 0.2, "schedule": "cosine",
                       "warmup_steps": 20}, "model": BLOCK}),
        ("layer4, SGD .005 with momentum .9, 20 epochs",
         {"training": {**SGD, "epochs": 20, "learning_rate": 0.005, "momentum": 0.9},
          "model": BLOCK}),
        ("the same, 960 samples of 48 users, minibatches of 64",
         {"training": {**SGD, "epochs": 20, "learning_rate": 0.005, "momentum": 0.9,
                       "batch_size": 64}, "model": BLOCK, "data": {"num_train": 960}}),
    ],
    "cnn": [
        ("l2 .005", {"training": {"l2": 5e-3}}),
        ("l2 .001", {}),
        ("30 epochs", {"training": {"epochs": 30}}),
        ("rate .3, minibatches of 128, 40 epochs",
         {"training": {"epochs": 40, "batch_size": 128, "learning_rate": 0.3}}),
        ("rate .2 cosine, 20 epochs",
         {"training": {"epochs": 20, "learning_rate": 0.2, "schedule": "cosine",
                       "warmup_steps": 20}}),
        ("rate .02 cosine with momentum .9",
         {"training": {"learning_rate": 0.02, "momentum": 0.9, "schedule": "cosine"}}),
        ("shifted by a pixel, 30 epochs",
         {"training": {"epochs": 30}, "data": {"augment": [{"crop": {"padding": 1}}]}}),
        ("labels smoothed by .1, 30 epochs",
         {"training": {"epochs": 30, "label_smoothing": 0.1}}),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What one recipe gave."""

    steps: int
    accuracy: float
    error: float
    seconds: float


def measure(config: RunConfig) -> Measured:
    """Return accuracy and set error of a recipe, and the processor's seconds for both."""
    began = time.process_time()
    problem = Problem.of(config)
    with TemporaryDirectory() as folder:
        trajectory = record(problem, Path(folder))
        schedule, trained = trajectory.schedule, trajectory.trained()
    trained_P = trained.numpy()
    parts = _parts(problem)
    rule = deletion_rule(with_engine(problem, "leave-one-out").config, problem.data.num_samples)
    weights = unit_weights(rule, [int(part.sum()) for part in parts]) or [1] * len(parts)
    sum_P = np.zeros(len(trained_P))
    for weight, part_n in zip(weights, parts, strict=True):
        sum_P += weight * (
            retrain(problem, schedule, part_n).numpy() - trained_P.astype(np.float64)
        )
    all_n = torch.stack(parts).any(0)
    retrained_P = retrain(problem, schedule, all_n).numpy()
    unlearned_P = apply_deletion(rule, trained_P, DeletionState(sum_P, int(all_n.sum())))
    parameters = slice(problem.network.layout.trained.num_parameters)
    distance, moved = (
        float(np.linalg.norm((vector_P - retrained_P)[parameters]))
        for vector_P in (unlearned_P, trained_P)
    )
    accuracy = held_out_quality(problem, trained).accuracy
    seconds = time.process_time() - began
    return Measured(trajectory.num_steps, accuracy, distance / moved, seconds)


def print_single(num_users: int = 2) -> None:
    """Print the relative error of single users, by what the leave-one-out engine carries."""
    model = {**RESNET["model"], "activation": "relu", "normalization": "frozen-batch"}
    training = {**SGD, "epochs": 2, "learning_rate": 3e-4, "clip_norm": 10}
    print("| carried | relative error of each user |\n|---|---|")
    for carried in ("weights", "differences"):
        recursion = {"engine": "leave-one-out", "leave_one_out": carried, "chunk": 2}
        sections = {**RESNET, "model": model, "training": training, "recursion": recursion}
        problem = Problem.of(RunConfig.from_values(sections))
        with TemporaryDirectory() as folder:
            trajectory = record(problem, Path(folder))
            block = BlockRecursion(problem, trajectory, range(num_users))
            block.advance(trajectory.num_steps)
            rows_KP, schedule = block.rows().astype(np.float64), trajectory.schedule
            trained_P = trajectory.trained().numpy().astype(np.float64)
        errors = []
        for user, row_P in enumerate(rows_KP):
            gone_n = problem.data.unit_of_sample.cpu() == user
            moved_P = retrain(problem, schedule, gone_n).numpy() - trained_P
            errors.append(np.linalg.norm(row_P - moved_P) / np.linalg.norm(moved_P))
        print(f"| {carried} | {', '.join(f'{error:.1e}' for error in errors)} |", flush=True)


def _parts(problem: Problem) -> list[Tensor]:
    """Return the masks (n,) of the parts of a random set: a fifth of the units."""
    data, generator = problem.data, np.random.default_rng(0)
    num_units = len(data.units)
    chosen = generator.choice(num_units, round(num_units / SHARE), replace=False)
    groups = np.array_split(chosen, len(chosen) if num_units < data.num_samples else PARTS)
    owners_n = data.unit_of_sample.cpu()
    return [torch.isin(owners_n, torch.from_numpy(group)) for group in groups]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="cnn", choices=list(RECIPES))
    parser.add_argument("--recipes", default="", help="Their numbers, from 0; all if left out.")
    parser.add_argument("--single", action="store_true", help="single users of a ReLU ResNet-18")
    asked = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    if asked.single:
        print_single()
        return
    base, recipes = (RESNET if asked.network == "resnet18" else CNN), RECIPES[asked.network]
    numbers = [int(number) for number in asked.recipes.split(",") if number] or range(len(recipes))
    print("| recipe | steps | accuracy | error of a fifth | seconds |\n|---|---|---|---|---|")
    for number in numbers:
        name, changed = recipes[number]
        sections = {key: {**base.get(key, {}), **changed.get(key, {})} for key in {*base, *changed}}
        found = measure(RunConfig.from_values(sections))
        print(f"| {name} | {found.steps} | {found.accuracy:.3f} | {found.error:.3f} | "
              f"{found.seconds:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
