"""What a run has to do, counted on its own data and network."""

# N units, T steps

import torch
from torch.utils.flop_counter import FlopCounterMode

from cluster.work_counts import (
    Workload,
    record_bytes,
    schedule_bytes,
)
from pipeline.config import RunConfig
from pipeline.config_yaml import one_line
from pipeline.errors import ModelError, PipelineError
from pipeline.hessian.chunking import widest_activation
from pipeline.models.counts import NetworkCounts
from pipeline.models.parameters import ParameterLayout
from pipeline.models.registry import Shape, build
from pipeline.models.train_mode import active_parts, training_form
from pipeline.models.trainable import cut
from pipeline.run.problem import Problem
from pipeline.run.schedule import Schedule
from pipeline.sizes import checkpoint_steps, fitting_tangents, num_buffers, stored_encoding


def workload_of(problem: Problem) -> Workload:
    """Count what the run of `problem` has to do."""
    config, data = problem.config, problem.data
    schedule = Schedule.draw(config.training, data.num_samples, config.seed)
    first_N = schedule.first_visits(data.unit_of_sample.cpu(), len(data.units))
    num_steps, width = schedule.num_steps, problem.num_parameters
    state_bytes = width * problem.initial_P.element_size() * (1 + num_buffers(config.training))
    others = 0 if data.rows is None else len(data.rows.held_out) + len(data.rows.unused)
    size = min(config.training.batch_size, data.num_samples)
    return Workload(
        num_units=len(data.units),
        num_parameters=width,
        num_steps=num_steps,
        num_products=int((num_steps - first_N).sum()),
        block=min(config.storage.units_per_block, len(data.units)),
        chunk=problem.chunk,
        encoding=stored_encoding(config.storage, width),
        state_bytes_per_unit=state_bytes,
        num_checkpoints=1 + -(-num_steps // checkpoint_steps(config, num_steps)),
        checkpoint_bytes=state_bytes,
        schedule_bytes=schedule_bytes(config.training.epochs, data.num_samples, num_steps)
        + record_bytes(data.num_samples, others),
        forward_flops=_forward_flops(problem) * size,
        num_samples=data.num_samples,
        batch_size=size,
    )


def fitting_chunk(problem: Problem, *, on_gpu: bool) -> int:
    """Return the tangents that fit into cache, or fill a GPU."""
    one_input = problem.data.inputs[:1]
    return fitting_tangents(
        widest_activation(problem.network.module, one_input),
        problem.config.training.batch_size,
        problem.num_parameters,
        one_input.element_size(),
        on_gpu=on_gpu,
    )


def _forward_flops(problem: Problem) -> float:
    inputs = problem.data.inputs[:1]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        problem.network.module(inputs)
    return float(counter.get_total_flops())


def count_own_network(
    config: RunConfig, input_shape: tuple[int, ...], num_outputs: int
) -> NetworkCounts:
    """Build a user's own network, and count it on one made-up input.

    Raises:
        ConfigError, ModelError: If it cannot be built, or does not take such inputs.
    """
    shape = Shape(input_shape, num_outputs)
    module = build(config.model.model_copy(update={"init": None}), shape, config.seed).eval()
    sample = torch.zeros(1, *input_shape)
    try:
        with torch.no_grad():
            try:
                module(sample)
            except (RuntimeError, TypeError, IndexError):
                # One that embeds whole numbers.
                sample = sample.long()
                module(sample)
            parts = cut(module, config.model.trainable, sample)
            if parts.backbone is not None:
                sample = parts.backbone(sample)
            with FlopCounterMode(display=False) as counter:
                parts.trained(sample)
    except PipelineError:
        raise
    except Exception as error:
        raise ModelError(
            f"{config.model.name} fails on an input of shape {input_shape}: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
    layout = ParameterLayout.of(training_form(parts.trained, active_parts(module)))
    widest = widest_activation(parts.trained, sample)
    return NetworkCounts(layout.num_parameters, counter.get_total_flops(), widest)
