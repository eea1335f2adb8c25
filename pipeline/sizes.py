"""The sizes of a run, as counts and shapes alone decide them: chunk, block, steps. Needs no torch."""

# N units, n samples, P parameters, K units of a chunk, T steps, B minibatch rows

from pipeline.bounds import MAX_SCHEDULED, MAX_STEPS
from pipeline.config import RunConfig, StorageConfig, TrainingConfig
from pipeline.errors import ConfigError
from pipeline.hadamard import FEWEST_WEIGHED, num_weighed
from storage.layout import EncodingName

# Blocks where the configuration leaves it open: at least so many, of at most so many units.
FEWEST_BLOCKS, LARGEST_BLOCK = 4, 256
# Of small rows a block has more: each block has objects of its own, which a deletion of many units
# rewrites. Their rows take at most so many bytes in float32, since one deletion rewrites an object,
# and there stay blocks enough to keep as many workers busy.
SMALL_BLOCK_BYTES, LARGEST_SMALL_BLOCK, MANY_BLOCKS = 1 << 20, 4096, 64
# A chunk's tangents, of parameters and of the widest activation, should stay in a core's cache.
CACHE_BYTES = 2 << 20
# On a GPU a chunk should fill the device.
GPU_BYTES = 1 << 30
MOST_TANGENTS = 256
# Of the explicit form, which has no activations.
MOST_ROWS = 4096
FEWEST_TANGENTS = 8
# Below this many parameters int8's rounding would exceed the method's own error (docs/method.md, 6).
SMALL_MODEL = 100_000
# Checkpoints: enough to keep the replay of a lost worker short, few enough to be cheap.
CHECKPOINTS = 20


def fitting_tangents(
    widest: int,
    batch_size: int,
    num_parameters: int,
    item_bytes: int,
    *,
    on_gpu: bool,
    most: int = MOST_TANGENTS,
) -> int:
    """Return the tangents propagated together that fit into cache, a power of two.

    Args:
        widest: Values of the widest activation, for one sample.
        batch_size: B.
        num_parameters: P.
        item_bytes: Bytes of a value.
        on_gpu: Whether they should fill a GPU instead.
        most: Of them.
    """
    # Both the tangents of the widest activation and the tangents themselves should fit.
    per_tangent = max(1, widest * batch_size, num_parameters) * item_bytes
    budget = GPU_BYTES if on_gpu else CACHE_BYTES
    fitting = max(FEWEST_TANGENTS, min(most, budget // per_tangent))
    return 1 << (fitting.bit_length() - 1)


def auto_block(num_units: int, num_parameters: int) -> int:
    """Return the units of a block: a few units still make blocks enough for several workers.

    >>> auto_block(100, 63), auto_block(10_000, 63), auto_block(100_000, 63), auto_block(10**6, 63)
    (25, 256, 1024, 4096)
    >>> auto_block(10**6, 7850)
    256
    """
    few = -(-num_units // FEWEST_BLOCKS)
    if few <= LARGEST_BLOCK:
        return few
    most = min(LARGEST_SMALL_BLOCK, SMALL_BLOCK_BYTES // (4 * num_parameters))
    fitting = min(most, num_units // MANY_BLOCKS)
    return max(LARGEST_BLOCK, 1 << (fitting.bit_length() - 1)) if fitting else LARGEST_BLOCK


def chunk_and_block(
    config: RunConfig, num_units: int, num_parameters: int, fitting_chunk: int
) -> tuple[int, int]:
    """Return K, the units computed together, and the units of a block, a multiple of K if chosen.

    Args:
        config: As asked for: numbers, or "auto".
        num_units: N.
        num_parameters: P.
        fitting_chunk: The tangents that fit into cache.

    Raises:
        ConfigError: If units are weighed and there are too few, or the block is smaller than a chunk.
    """
    asked_block, asked_chunk = config.storage.block, config.recursion.chunk
    if config.recursion.engine == "weighing":
        return _weighed(config, num_units)
    if config.recursion.engine == "leave-one-out" and fitting_chunk == FEWEST_TANGENTS:
        # Units share nothing but a call: beyond the cache fewer of them together are faster.
        fitting_chunk = 2 if 4 * num_parameters > CACHE_BYTES else fitting_chunk
    block = auto_block(num_units, num_parameters) if asked_block == "auto" else asked_block
    limit = max(2, min(block, num_units))
    chunk = max(2, min(limit, fitting_chunk)) if asked_chunk == "auto" else min(asked_chunk, limit)
    return chunk, max(1, block // chunk) * chunk if asked_block == "auto" else block


def explicit_pays(config: RunConfig, num_parameters: int, sizes: tuple[int, ...]) -> bool:
    """Whether forming a minibatch's Hessian costs less than half of the products that it replaces.

    Args:
        config: Its engine, and the form it asks for.
        num_parameters: P.
        sizes: Samples of a minibatch, units of a block, and units in all.
    """
    recursion = config.recursion
    wanted = recursion.hvp == "auto" and recursion.engine == "hvp"
    return wanted and 2 * num_parameters <= min(sizes)


def _weighed(config: RunConfig, num_units: int) -> tuple[int, int]:
    """Return the units weighed together, and the units of a block, a multiple of them."""
    asked_block, asked_chunk = config.storage.block, config.recursion.chunk
    if num_units < FEWEST_WEIGHED:
        raise ConfigError(
            f"recursion.engine weighing needs at least {FEWEST_WEIGHED} units, found {num_units}; "
            "choose leave-one-out"
        )
    chunk = num_weighed(num_units, None if asked_chunk == "auto" else asked_chunk)
    if asked_block == "auto":
        return chunk, chunk
    if asked_block < chunk:
        raise ConfigError(
            f"storage.block is {asked_block}, and recursion.engine weighing computes {chunk} units "
            "together; choose a block of at least as many, or auto"
        )
    return chunk, asked_block // chunk * chunk


def check_schedule(config: TrainingConfig, num_samples: int) -> int:
    """Return T.

    Raises:
        ConfigError: If the training cannot run on `num_samples` samples.
    """
    if config.batch_size > num_samples:
        raise ConfigError(
            f"training.batch_size is {config.batch_size}, but there are only {num_samples} training "
            f"samples; choose a batch_size of at most {num_samples}"
        )
    num_steps = config.epochs * -(-num_samples // config.batch_size)
    if config.epochs * num_samples > MAX_SCHEDULED or num_steps > MAX_STEPS:
        raise ConfigError(
            f"training.epochs {config.epochs:,} over {num_samples:,} samples in minibatches of "
            f"{config.batch_size:,} are {num_steps:,} steps; expected at most {MAX_STEPS:,} steps and "
            f"{MAX_SCHEDULED:,} samples in all, since their order is held in memory"
        )
    if config.nesterov and not config.momentum:
        raise ConfigError("training.nesterov needs training.momentum > 0")
    return num_steps


def checkpoint_steps(config: RunConfig, num_steps: int) -> int:
    """Return the steps between checkpoints."""
    wanted = config.recursion.checkpoint_every
    return max(1, -(-num_steps // CHECKPOINTS)) if wanted == "auto" else wanted


def stored_encoding(config: StorageConfig, num_parameters: int) -> EncodingName:
    """Return the encoding of approximators, with "auto" settled."""
    if config.encoding != "auto":
        return config.encoding
    return "float16" if num_parameters < SMALL_MODEL else "int8"


def num_buffers(config: TrainingConfig) -> int:
    """Return how many vectors as long as the parameters the optimizer keeps."""
    if config.optimizer == "sgd":
        return 1 if config.momentum else 0
    return 2
