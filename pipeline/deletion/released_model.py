"""A release as a module ready to serve."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.config import RunConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.models.registry import Shape, build
from pipeline.models.trainable import head_of, normalise_head
from pipeline.run.checkpoints import read_frozen
from pipeline.run.directory import RunDirectory
from storage.store import ApproximatorStore


def load_release(run: str | Path, release: int | None = None) -> nn.Module:
    """Return a released model in eval mode, on the CPU, in float32: the whole network.

    Imports the model's factory if it is a user's own; needs no data.

    Args:
        run: A run directory.
        release: Number of the release, from 1; None takes the newest. 0 gives the model that
            deletions start from, trained or repaired: it is not free of those deleted from it.

    Raises:
        ConfigError: If there is no such release.
        ModelError: If the factory no longer makes the network that was released.

    >>> import tempfile
    >>> from pipeline import RunConfig, delete, load_release, precompute, train
    >>> folder = tempfile.mkdtemp()
    >>> config = RunConfig.from_values({
    ...     "data": {"source": "digits", "num_train": 40},
    ...     "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.1, "l2": 0.01},
    ... })
    >>> run = train(config, f"{folder}/run")
    >>> store = precompute(run)
    >>> receipt = delete(run, store.units[:2])
    >>> model = load_release(run.path)
    >>> model(torch.zeros(1, 1, 8, 8)).shape
    torch.Size([1, 10])
    >>> trained = load_release(run.path, release=0)
    >>> bool((model[1].weight == trained[1].weight).all())
    False
    """
    opened = RunDirectory.open(run)
    number = _newest(opened) if release is None else release
    tensors = _released(opened, number) if number else _before_deletions(opened)
    module = whole_model(opened.config, recorded_shape(opened))
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(
            f"model.name {opened.config.model.name} no longer makes the network of release {number}: "
            f"{' '.join(str(error).split())}"
        ) from error
    return module.eval()


def _released(run: RunDirectory, number: int) -> dict[str, Tensor]:
    path = run.path / "releases" / str(number) / "model.safetensors"
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{run.path} has no release {number}; `unlearn delete` makes one"
        ) from error
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged: {error}; restore it") from error


def _before_deletions(run: RunDirectory) -> dict[str, Tensor]:
    has_rows = run.manifest_exists() or run.config.storage.url is not None
    generation = ApproximatorStore.open(run.store_url).generation if has_rows else 0
    trajectory = run.trajectory(generation)
    trained = trajectory.layout().unflatten(trajectory.trained().to(torch.float32))
    frozen = {k: torch.from_numpy(v) for k, v in read_frozen(run.trajectory_folder).items()}
    return {**trained, **frozen}


def whole_model(config: RunConfig, shape: Shape) -> nn.Module:
    """Return the whole network of a run, freshly drawn, as it takes inputs of the data."""
    # The weights come from the run; a file that only began it need not be there any more.
    model = config.model.model_copy(update={"init": None})
    module = build(model, shape, config.seed)
    if model.feature_norm is not None:
        normalise_head(module, head_of(module, torch.zeros(1, *shape.inputs)), model.feature_norm)
    return module


def _newest(run: RunDirectory) -> int:
    numbers = [int(p.name) for p in (run.path / "releases").glob("*") if p.name.isdecimal()]
    return max(numbers, default=1)


def recorded_shape(run: RunDirectory) -> Shape:
    """Return the shape of one input and the number of classes, as recorded at training.

    Raises:
        ConfigError: If the run was recorded without them.
    """
    recorded = run.environment()
    try:
        inputs = tuple(int(size) for size in recorded["input_shape"])
        return Shape(inputs, int(recorded["num_classes"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{run.path / 'config.yaml'} does not say for which inputs the model was built "
            f"({error}); restore it"
        ) from error
