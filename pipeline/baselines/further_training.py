"""Fine-tuning on what remains, and ascent on what is forgotten: training a little further.

Both take the run's own step (docs/method.md, section 2) from the trained parameters, with the run's
batch size, decay and clipping, and draw their minibatches by the task's seed.
"""

# P parameters

import torch
from torch import Tensor

from pipeline.baselines.forgetting import Forgetting
from pipeline.errors import DivergedError
from pipeline.objective import SgdState, TrainingConfig, clip_factor
from pipeline.schedule import Schedule

FINE_TUNE_EPOCHS = 15
NEG_GRAD_EPOCHS = 2
# Ascent at the full learning rate leaves the basin within a step or two.
NEG_GRAD_RATE = 0.1


def fine_tune(task: Forgetting) -> Tensor:
    """Return the parameters (P,) after 15 epochs on the remaining data at the run's learning rate."""
    training = task.problem.config.training
    config = training.model_copy(
        update={
            "epochs": FINE_TUNE_EPOCHS,
            "batch_size": min(training.batch_size, len(task.remaining_ids)),
        }
    )
    return _train(task, task.remaining_ids, config, ascend=False)


def neg_grad(task: Forgetting) -> Tensor:
    """Return the parameters (P,) after 2 epochs of gradient ascent on the forgotten data.

    At a tenth of the run's learning rate, and on the samples' losses alone: the L2 term is kept out,
    since ascending on it would blow the parameters up.
    """
    training = task.problem.config.training
    config = training.model_copy(
        update={
            "epochs": NEG_GRAD_EPOCHS,
            "learning_rate": NEG_GRAD_RATE * training.learning_rate,
            "batch_size": min(training.batch_size, len(task.forgotten_ids)),
            "l2": 0.0,
        }
    )
    return _train(task, task.forgotten_ids, config, ascend=True)


def _train(task: Forgetting, ids: Tensor, config: TrainingConfig, *, ascend: bool) -> Tensor:
    problem = task.problem
    schedule = Schedule.draw(config, len(ids), task.seed)
    state = SgdState.start(task.trained_P, config)
    steps = zip(schedule.sample_ids, schedule.learning_rates, strict=True)
    with problem.arithmetic():
        for step, (places, learning_rate) in enumerate(steps):
            batch = problem.minibatch(ids[places.to(ids.device)])
            w_P = state.parameters_P
            total_P = problem.network.linearize(w_P, *batch).gradient_sum()
            gradient_P = total_P / len(places) + config.l2 * w_P
            if not bool(torch.isfinite(gradient_P).all()):
                raise DivergedError(
                    f"training further: the gradient of step {step} is not finite; lower "
                    "training.learning_rate or set training.clip_norm"
                )
            clipped_P = gradient_P * clip_factor(gradient_P, config.clip_norm)
            state = state.step(-clipped_P if ascend else clipped_P, learning_rate, config)
    return state.parameters_P
