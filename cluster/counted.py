"""What a run has to do, from counts and shapes alone: neither data nor torch are needed.

    work = count(config, Counts(num_units=50_000, num_samples=50_000))

Only a user's own network is built, once, on a made-up input.
"""

# N units, n samples

from dataclasses import dataclass

from cluster.rates_file import CNN, LOGISTIC, PERCEPTRON, RESNET
from cluster.work_counts import (
    Workload,
    expected_products,
    record_bytes,
    schedule_bytes,
)
from pipeline.bounds import MAX_IMAGE_SIDE, MAX_PARAMETERS, MAX_SAMPLES
from pipeline.config import RunConfig
from pipeline.config_yaml import short
from pipeline.errors import ConfigError
from pipeline.models.counts import NetworkCounts, counts_of
from pipeline.sizes import (
    check_schedule,
    checkpoint_steps,
    chunk_and_block,
    fitting_tangents,
    num_buffers,
    stored_encoding,
)

# Shape of an input and outputs of the sources that do not depend on a user's files.
SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "adult": ((108,), 2),
    "celeba": ((3, 128, 128), 2),
    "cifar10": ((3, 32, 32), 10),
    "diabetes": ((10,), 1),
    "digits": ((1, 8, 8), 10),
    "fashion-mnist": ((1, 28, 28), 10),
    "hapt": ((561,), 12),
    "lfw": ((3, 224, 224), 29),
    "mnist": ((1, 28, 28), 10),
    "obesity": ((31,), 7),
    "wine": ((13,), 3),
}
KINDS = {
    "logistic": LOGISTIC,
    "mlp": PERCEPTRON,
    "cnn": CNN,
    "lenet": CNN,
    "resnet18": RESNET,
}
MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Counts:
    """What the data would say, as far as a plan needs it.

    Attributes:
        num_units: N; None: one unit for each sample.
        num_samples: n; None: `data.num_train`, or one for each unit.
        input_shape: Of one input; None: the source's.
        num_classes: Outputs of the model; None: the source's.
    """

    num_units: int | None = None
    num_samples: int | None = None
    input_shape: tuple[int, ...] | None = None
    num_classes: int | None = None

    @staticmethod
    def of(
        num_units: int | None, num_samples: int | None, shape: str | None, num_classes: int | None
    ) -> "Counts | None":
        """Return what the command line gives; None where it gives nothing.

        Raises:
            ConfigError: If a number is not between what runs can have, or the shape is none.
        """
        for option, value, most in (
            ("--units", num_units, MAX_SAMPLES),
            ("--samples", num_samples, MAX_SAMPLES),
            ("--classes", num_classes, MAX_PARAMETERS),
        ):
            if value is not None and not 1 <= value <= most:
                raise ConfigError(f"{option} is {short(value)}; expected 1 to {most:,}")
        counts = Counts(
            num_units, num_samples, None if shape is None else _shape(shape), num_classes
        )
        if counts == Counts():
            return None
        if num_units is None and num_samples is None:
            raise ConfigError(
                "--input-shape and --classes plan without data; give --units or --samples with them"
            )
        return counts

    def settled(self, config: RunConfig) -> "SettledCounts":
        """Return the counts with what the configuration says of the others.

        Raises:
            ConfigError: If they contradict it, or leave something open.
        """
        of_users = config.data.unit == "user"
        samples = self.num_samples or config.data.num_train
        if samples is None and not of_users:
            samples = self.num_units
        if samples is None:
            raise ConfigError("data.unit is user: give --samples, how many they own together")
        if of_users and self.num_units is None:
            raise ConfigError("data.unit is user: give --units, how many own the samples")
        units = self.num_units or samples
        if units > samples:
            raise ConfigError(
                f"--units is {units:,}, and there are only {samples:,} samples; each unit owns at "
                "least one"
            )
        if not of_users and units != samples:
            raise ConfigError(
                f"data.unit is sample, and {units:,} units are not {samples:,} samples; give one of "
                "the two numbers, or --set data.unit=user"
            )
        shape, outputs = SHAPES.get(config.data.source, (None, None))
        if config.data.source == "digits" and config.data.image_size is not None:
            shape = (1, config.data.image_size, config.data.image_size)
        if outputs == 2 and config.training.loss == "binary-cross-entropy":
            # One truth value instead of two classes.
            outputs = 1
        shape, outputs = self.input_shape or shape, self.num_classes or outputs
        for option, value in (("--input-shape", shape), ("--classes", outputs)):
            if value is None:
                raise ConfigError(
                    f"data.source {config.data.source} does not say without its files what the model "
                    f"is built for; give {option}"
                )
        assert shape is not None and outputs is not None, "refused above"
        return SettledCounts(units, samples, shape, outputs)


@dataclass(frozen=True)
class SettledCounts:
    """As `Counts`, nothing left open."""

    num_units: int
    num_samples: int
    input_shape: tuple[int, ...]
    num_classes: int


def _shape(text: str) -> tuple[int, ...]:
    parts = text.lower().replace(",", "x").split("x")
    if len(parts) > MOST_DIMENSIONS or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"--input-shape is {short(text)}; expected sizes such as 784 or 3x32x32")
    sizes = tuple(int(part[:12]) for part in parts)
    total = 1
    for size in sizes:
        total *= size
    if not 1 <= total <= MAX_PARAMETERS or (len(sizes) == 3 and max(sizes) > 64 * MAX_IMAGE_SIDE):
        raise ConfigError(
            f"--input-shape is {short(text)}; expected 1 to {MAX_PARAMETERS:,} values"
        )
    return sizes


def network_counts(config: RunConfig, counts: SettledCounts) -> NetworkCounts:
    """Count the network; a user's own is built, which imports torch.

    Raises:
        ConfigError, ModelError: If it does not take such inputs.
    """
    if ":" not in config.model.name:
        found = counts_of(config.model, counts.input_shape, counts.num_classes)
        if config.model.trainable == "head" and config.data.augment is not None:
            # The frozen part stays inside, since its features differ from step to step.
            model = config.model.model_copy(update={"trainable": "all"})
            whole = counts_of(model, counts.input_shape, counts.num_classes)
            found = NetworkCounts(found.num_parameters, whole.forward_flops, whole.widest)
    else:
        from cluster.workload import count_own_network

        found = count_own_network(config, counts.input_shape, counts.num_classes)
    if found.num_parameters > MAX_PARAMETERS:
        raise ConfigError(
            f"model.name {config.model.name} has {found.num_parameters:,} weights for such inputs and "
            f"classes; expected at most {MAX_PARAMETERS:,}"
        )
    return found


def fitting_chunk(config: RunConfig, network: NetworkCounts, *, on_gpu: bool) -> int:
    """Return the tangents that fit into cache, or fill a GPU."""
    item_bytes, batch = _item_bytes(config), config.training.batch_size
    return fitting_tangents(
        network.widest, batch, network.num_parameters, item_bytes, on_gpu=on_gpu
    )


def count(
    config: RunConfig, counts: SettledCounts, network: NetworkCounts, fitting: int
) -> Workload:
    """Return what a run of these counts has to do.

    Raises:
        ConfigError: If it cannot be trained on so many samples, or the engine needs more units.
    """
    num_samples, num_units = counts.num_samples, counts.num_units
    num_steps = check_schedule(config.training, num_samples)
    width, training = network.num_parameters, config.training
    state_bytes = width * _item_bytes(config) * (1 + num_buffers(training))
    chunk, block = chunk_and_block(config, num_units, width, fitting)
    return Workload(
        num_units=num_units,
        num_parameters=width,
        num_steps=num_steps,
        num_products=expected_products(
            num_units, num_samples, training.batch_size, training.epochs
        ),
        block=min(block, num_units),
        chunk=chunk,
        encoding=stored_encoding(config.storage, width),
        state_bytes_per_unit=state_bytes,
        num_checkpoints=1 + -(-num_steps // checkpoint_steps(config, num_steps)),
        checkpoint_bytes=state_bytes,
        schedule_bytes=schedule_bytes(training.epochs, num_samples, num_steps)
        + record_bytes(num_samples, 0),
        forward_flops=float(network.forward_flops) * training.batch_size,
        num_samples=num_samples,
        batch_size=training.batch_size,
    )


def kind_of_model(config: RunConfig) -> str | None:
    """Return the kind of network whose measured rate a plan takes; None for a user's own."""
    if config.model.trainable == "head" and config.data.augment is None:
        return LOGISTIC
    return KINDS.get(config.model.name)


def _item_bytes(config: RunConfig) -> int:
    return 8 if config.recursion.dtype == "float64" else 4
