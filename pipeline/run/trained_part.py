"""Splitting a configured model into its trained part, frozen tensors and cached features.

A run that was begun keeps three things beside its schedule and checkpoints, because computing them
again could give other bits:

- `frozen.safetensors`: every tensor of the whole model that no step changes (frozen parameters,
  frozen statistics), by name;
- `features.safetensors`: `train` and `test`, what the frozen backbone makes of the samples;
- `checkpoint-0.safetensors`: the parameters that training started from.
"""

# n samples, B minibatch rows, P parameters

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline import tensor_file
from pipeline.config import RunConfig
from pipeline.data import Dataset
from pipeline.errors import ConfigError, ModelError
from pipeline.models.check import check_model, check_training_form, refuse_zero_gradients
from pipeline.models.parameters import ParameterLayout
from pipeline.models.registry import Shape, build
from pipeline.models.resnet import calibrate_statistics
from pipeline.models.train_mode import active_parts, modes, training_form
from pipeline.models.trainable import Parts, cut, scaled
from pipeline.models.weights import set_tensors, tensors_of
from pipeline.run.checkpoints import FEATURES, FROZEN, checkpoint_path, read_plain
from pipeline.suggestions import listed

# Samples passed through the backbone together.
BATCH = 256


def featurise(data: Dataset, backbone: Callable[[Tensor], Tensor], norm: float | None) -> Dataset:
    """Return the data set with features for inputs.

    Args:
        data: With the inputs that the whole model takes.
        backbone: Maps inputs (B, ...) to features (B, ...).
        norm: If given, each sample's features are scaled to this L2 norm.

    Raises:
        ModelError: If the backbone gives other features when the same samples are passed again, or
            values that are not finite.
    """
    with torch.no_grad():
        first = data.inputs[:BATCH]
        if not torch.equal(backbone(first), backbone(first)):
            raise ModelError(
                "the frozen part of the model changes between passes: the same samples give other "
                "features; remove what draws at random or keeps a state"
            )
        inputs = _features(data.inputs, backbone, norm)
        test_inputs = _features(data.test_inputs, backbone, norm)
    if not bool(torch.isfinite(inputs).all()):
        raise ModelError(
            "the frozen part of the model gives features that are not finite; check model.init"
        )
    return replace(data, inputs=inputs, test_inputs=test_inputs)


def _features(inputs: Tensor, backbone: Callable[[Tensor], Tensor], norm: float | None) -> Tensor:
    features = torch.cat([backbone(part) for part in inputs.split(BATCH)])
    return features if norm is None else scaled(features.flatten(1), norm)


# Samples that a model is tried on before a run starts.
TRIED, TRIED_BY_ADAM = 4, 32


@dataclass(frozen=True)
class TrainedPart:
    """The part of a model that is trained, on the data as that part sees them.

    Attributes:
        module: In eval mode.
        data: The samples, or their features.
        frozen: The whole model's other tensors, by name, on the CPU.
        input_shape: Shape of one input of the whole model.
        has_features: Whether `data` holds features.
        active: Names of the parts that training replaces (`pipeline.models.train_mode`).
    """

    module: nn.Module
    data: Dataset
    frozen: dict[str, Tensor]
    input_shape: tuple[int, ...]
    has_features: bool
    active: frozenset[str] = frozenset()


def trained_part(
    config: RunConfig, data: Dataset, recorded: Path | None, dtype: torch.dtype
) -> TrainedPart:
    """Build the model and cut it; take what `recorded` holds instead of computing it again.

    Args:
        config: Names the model, its start and its trainable part.
        data: On the run's device; inputs in its dtype, or whole numbers.
        recorded: The folder of a trajectory that was begun, if there is one.
        dtype: The run's, of parameters.

    Raises:
        ConfigError, ModelError: If the model cannot be built, cut or followed.
        TrajectoryError: If a recorded file is damaged.
    """
    input_shape = tuple(data.inputs.shape[1:])
    module = build(config.model, Shape(input_shape, data.num_classes), config.seed)
    module = module.to(data.inputs.device, dtype)
    active, as_made = active_parts(module), modes(module)
    module.eval()
    data = as_the_model_takes_them(module, data, dtype)
    inputs = data.inputs
    start = {} if recorded is None else _read(recorded / FROZEN)
    if start:
        set_tensors(module, start)
    elif config.model.name == "resnet18" and config.model.init is None and not active:
        calibrate_statistics(module, inputs)
    check_model(module, inputs[:TRIED], _output_shape(config, data))
    check_training_form(module, active, as_made, inputs[:TRIED])
    parts = cut(module, config.model.trainable, inputs[:1])
    _check_feature_norm(config, parts)
    _refuse_active_backbone(parts, active)
    trained = set(ParameterLayout.of(training_form(parts.trained, active)).names)
    frozen = {name: value for name, value in tensors_of(module).items() if name not in trained}
    if parts.backbone is None or config.data.augment is not None:
        # Features of augmented pictures differ from step to step, so the frozen part stays inside.
        whole = parts.trained if parts.backbone is None else module
        _check_for_adam(config, training_form(whole, active), inputs, recorded)
        return TrainedPart(whole, data, frozen, input_shape, False, active)
    seen = None if recorded is None else _stored_features(recorded, data)
    seen = seen or featurise(data, parts.backbone, config.model.feature_norm)
    _check_for_adam(config, training_form(parts.trained, active), seen.inputs, recorded)
    return TrainedPart(parts.trained, seen, frozen, input_shape, True, active)


def _refuse_active_backbone(parts: Parts, active: frozenset[str]) -> None:
    """Refuse dropout and minibatch statistics where features are computed once for all steps."""
    trained = {name for name, _ in parts.trained.named_modules()}
    frozen = sorted(active - trained)
    if parts.backbone is not None and frozen:
        raise ModelError(
            f"{listed(frozen)}: dropout, or batch normalisation by minibatch, in the frozen part of "
            "the model, whose features are computed once for all steps; freeze it (`module.eval()`), "
            "or set model.trainable to a part that holds it"
        )


# What modules raise for inputs of a type that they do not take.
_UNFIT = (RuntimeError, TypeError, ValueError, IndexError)


def as_the_model_takes_them(module: nn.Module, data: Dataset, dtype: torch.dtype) -> Dataset:
    """Return the data with whole numbers as numbers, unless the model refuses those and embeds them."""
    if data.inputs.is_floating_point():
        return data
    numbers = data.to(data.inputs.device, dtype)
    with torch.no_grad():
        try:
            module(numbers.inputs[:1])
        except _UNFIT:
            return data
    return numbers


def _output_shape(config: RunConfig, data: Dataset) -> tuple[int, ...] | None:
    """Return the shape that a model's output for one sample must have; None: any.

    A user's own loss of numbers may take several outputs for each, such as a mean and a variance.
    """
    free = ":" in config.training.loss and not data.has_classes
    return None if free else data.output_shape


def _check_for_adam(
    config: RunConfig, trained: nn.Module, inputs: Tensor, recorded: Path | None
) -> None:
    """Ask before training alone: what is recorded was asked then."""
    begun = recorded is not None and checkpoint_path(recorded, 0).is_file()
    if config.training.optimizer != "sgd" and not begun:
        refuse_zero_gradients(trained, inputs[:TRIED_BY_ADAM])


def _check_feature_norm(config: RunConfig, parts: Parts) -> None:
    if config.model.feature_norm is not None and config.model.trainable != "head":
        raise ConfigError(
            f"model.feature_norm needs model.trainable: head (found {config.model.trainable!r}): "
            "only a head's inputs are features"
        )
    if config.model.feature_norm is not None and config.data.augment is not None:
        raise ConfigError(
            "model.feature_norm scales features that are computed once, and data.augment changes the "
            "samples at each step; remove one of them"
        )


def _stored_features(folder: Path, data: Dataset) -> Dataset | None:
    stored = _read(folder / FEATURES)
    if not stored:
        return None
    return replace(
        data, inputs=stored["train"].to(data.inputs), test_inputs=stored["test"].to(data.inputs)
    )


def write_start(folder: Path, part: TrainedPart) -> None:
    """Write the frozen tensors and the features, where there are any, into a trajectory's folder."""
    write_frozen(folder, part.frozen)
    if part.has_features:
        features = {"train": part.data.inputs, "test": part.data.test_inputs}
        _write(folder / FEATURES, features)


def write_frozen(folder: Path, frozen: dict[str, Tensor]) -> None:
    """Write the frozen tensors, if there are any."""
    if frozen:
        _write(folder / FROZEN, frozen)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    tensor_file.write_plain(path, {name: value.cpu().numpy() for name, value in tensors.items()})


def _read(path: Path) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in read_plain(path).items()}
