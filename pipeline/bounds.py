"""Bounds of a configuration's numbers, each with its reason.

None is near what anyone needs. What lies beyond would exhaust memory, or end in a library's crash
whose message names no key. Where a bound for each key does not suffice because the data decide, a run
is measured again when they are there: its steps in `pipeline.run.problem`, its model in
`pipeline.models.registry`.
"""

from typing import Annotated

from pydantic import AfterValidator, Field

MAX_EPOCHS = 1_000_000
MAX_BATCH = 100_000_000
MAX_SAMPLES = 1_000_000_000
MAX_IMAGE_SIDE = 256
MAX_WIDTH = 1_000_000
MAX_LAYERS = 100
MAX_PARAMETERS = 1_000_000_000
MAX_CHUNK = 100_000
MAX_THREADS = 256
MAX_WORKERS = 10_000
MAX_GPUS = 64
MAX_WAIT_SECONDS = 7 * 86_400
MAX_REPEATS = 10_000
MAX_NAME = 100
MAX_GROUPS = 1_000
# Of a whole run: the ids of the samples in order, 2 GB, and steps, each some hundred bytes.
MAX_SCHEDULED = 250_000_000
MAX_STEPS = 1_000_000


def at_least(limit: float, reason: str) -> AfterValidator:
    """Return a bound of a number that says why it is there."""

    def check(value: float) -> float:
        if value < limit:
            raise ValueError(f"expected at least {limit:,}: {reason}")
        return value

    return AfterValidator(check)


def at_most(limit: float, reason: str) -> AfterValidator:
    """Return a bound of a number that says why it is there."""

    def check(value: float) -> float:
        if value > limit:
            raise ValueError(f"expected at most {limit:,}: {reason}")
        return value

    return AfterValidator(check)


Share = Annotated[float, Field(ge=0, lt=1)]
"""A share, below 1."""

Probability = Annotated[float, Field(gt=0, le=1)]
"""A probability of something that happens."""

Positive = Annotated[
    float,
    Field(gt=0),
    at_least(1e-30, "float32, in which runs are computed, takes less for zero"),
    at_most(1e30, "float32, in which runs are computed, holds little more"),
]
NotNegative = Annotated[
    float, Field(ge=0), at_most(1e30, "float32, in which runs are computed, holds little more")
]
Width = Annotated[int, Field(ge=1), at_most(MAX_WIDTH, "a unit's approximator holds every weight")]
Widths = Annotated[tuple[Width, ...], Field(max_length=MAX_LAYERS)]
NumUnits = Annotated[int, Field(ge=1), at_most(MAX_SAMPLES, "no run holds as many units")]
NumSteps = Annotated[int, Field(ge=1), at_most(MAX_SAMPLES, "no run takes as many steps")]
