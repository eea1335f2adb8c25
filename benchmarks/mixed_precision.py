"""How far a training in mixed precision (bfloat16 autocast) is from its replay in float32.

    python benchmarks/mixed_precision.py [--epochs 15]

A tanh perceptron (64, 32) on 600 of scikit-learn's digits and a small network with convolutions on 400,
SGD and AdamW, minibatches of 32. Each loop trains with autocast, its parameters kept in float32, as
usual. Prints

- the relative difference of one step: |step in autocast - step in float32| over |step in float32|,
  taken from the same parameters and optimizer state; median and largest of the run's steps;
- the same of the whole run: |end in autocast - end in float32| over |end in float32 - start|, both
  with the same minibatches and rates;
- for scale, what one of the training samples moves: the median over 5 samples of
  |retrained without it - end in float32| over |end in float32 - start|.

The recorder refuses a step that differs by more than a thousandth.
"""

import argparse
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import RunConfig
from pipeline.models.registry import Shape, build
from pipeline.run.problem import Problem
from pipeline.run.schedule import Schedule
from pipeline.training.retraining import retrain
from pipeline.training.step import OptimizerState, take_step

MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "perceptron": (600, {"name": "mlp", "hidden": [64, 32], "activation": "tanh"}),
    "convolutions": (400, {"name": "cnn", "activation": "tanh", "pooling": "average"}),
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.1},
    "adamw": {"learning_rate": 1e-3},
}
NUM_UNITS = 5


def flat(model: nn.Module) -> Tensor:
    """Return the parameters (P,)."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def moments(
    optimizer: torch.optim.Optimizer, model: nn.Module, state: OptimizerState
) -> OptimizerState:
    """Return the optimizer's state as the replay's, at the model's parameters."""
    if not state.buffers:
        return OptimizerState(flat(model), {}, state.step)
    buffers = {
        name: torch.cat([optimizer.state[p][name].reshape(-1) for p in model.parameters()])
        if optimizer.state
        else value
        for name, value in state.buffers.items()
    }
    return OptimizerState(flat(model), buffers, state.step)


def measured(model_name: str, optimizer_name: str, epochs: int) -> str:
    """Return the table's row of one training."""
    num, section = MODELS[model_name]
    training = {"epochs": epochs, "batch_size": 32, "optimizer": optimizer_name}
    config = RunConfig.from_values(
        {
            "data": {"source": "digits", "num_train": num},
            "model": section,
            "training": training | OPTIMIZERS[optimizer_name],
        }
    )
    problem = Problem.of(config)
    data, settings = problem.data, config.training
    schedule = Schedule.draw(settings, num, config.seed)
    model = build(config.model, Shape(tuple(data.inputs.shape[1:]), 10), config.seed)
    kinds: dict[str, Any] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    optimizer = kinds[optimizer_name](
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay or 0.0
    )
    state, differences = OptimizerState.start(problem.initial_P, settings), []
    for step, ids in enumerate(schedule.sample_ids):
        before = moments(optimizer, model, OptimizerState(state.parameters_P, state.buffers, step))
        optimizer.zero_grad()
        with torch.autocast(data.inputs.device.type, dtype=torch.bfloat16):
            scores = model(data.inputs[ids])
        nn.functional.cross_entropy(scores.float(), data.targets[ids]).backward()
        optimizer.step()
        with problem.arithmetic():
            _, exact, _ = take_step(problem, before, schedule, step)
        length = float((exact.parameters_P - before.parameters_P).norm())
        differences.append(float((flat(model) - exact.parameters_P).norm()) / length)
    end_P = retrain(problem, schedule, torch.zeros(num, dtype=torch.bool))
    way = float((end_P - problem.initial_P).norm())
    moved = []
    for unit in range(NUM_UNITS):
        mask = torch.zeros(num, dtype=torch.bool)
        mask[unit] = True
        moved.append(float((retrain(problem, schedule, mask) - end_P).norm()) / way)
    drift = float((flat(model) - end_P).norm()) / way
    return (
        f"| {model_name} | {optimizer_name} | {schedule.num_steps} | {median(differences):.2g} | "
        f"{max(differences):.2g} | {drift:.2g} | {median(moved):.2g} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    asked = parser.parse_args()
    print("| network | optimizer | steps | one step, median | largest | whole run | one sample |")
    print("|---|---|---|---|---|---|---|")
    for model_name in MODELS:
        for optimizer_name in OPTIMIZERS:
            print(measured(model_name, optimizer_name, asked.epochs), flush=True)


if __name__ == "__main__":
    main()
