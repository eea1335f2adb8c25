"""Changes of a recipe that may bring deletions nearer to retraining, and which of them to pursue.

Every change is measured by a pilot; nothing here knows what helps. All changes are tried alone with a
small budget, the better ones in pairs, and the best of all with a full budget: successive halving.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from pipeline.config import RunConfig

_WITH_ACTIVATION: Final = ("mlp", "cnn", "lenet", "resnet18")
# Changes that go on into pairs, pairs that are tried, and recipes that get a full pilot.
PURSUED, PAIRS, FINALISTS = 4, 6, 4
# Accuracy that a recipe may lose and still be chosen; and beyond which it is not pursued at all.
ACCEPTED_LOSS, HOPELESS_LOSS = 0.01, 0.1

# What a pilot found of one recipe: label, overrides, accuracy, error, engine.
Candidate = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """A change of a recipe.

    Attributes:
        label: In words.
        slug: Part of a folder's name.
        key: What it changes; two changes of one key exclude each other.
        overrides: Of the form "section.key=value".
    """

    label: str
    slug: str
    key: str
    overrides: tuple[str, ...]

    def of(self, base: RunConfig) -> RunConfig:
        """Return the changed configuration.

        Raises:
            ConfigError: If it contradicts another setting.
        """
        return RunConfig.from_text(base.to_yaml(), f"the change {self.label!r}", self.overrides)

    def __add__(self, other: "Change") -> "Change":
        """Return both changes as one."""
        return Change(
            f"{self.label}, {other.label}",
            f"{self.slug}+{other.slug}",
            f"{self.key} {other.key}",
            (*self.overrides, *other.overrides),
        )


UNCHANGED: Final = Change("as configured", "as-configured", "", ())


def changes(base: RunConfig) -> list[Change]:
    """Return the changes that apply to a configuration."""
    return [change for make in _MAKERS for change in make(base)]


def _rates(base: RunConfig) -> list[Change]:
    if base.training.learning_rates is not None:
        return []
    words = ((0.5, "half the learning rate"), (0.25, "a quarter of the learning rate"))
    rate = base.training.learning_rate
    return [
        Change(label, f"rate-{factor:g}", "rate", (f"training.learning_rate={rate * factor!r}",))
        for factor, label in words
    ]


def _batches(base: RunConfig) -> list[Change]:
    if base.training.learning_rates is not None:
        return []
    return [
        Change(
            f"minibatches of {base.training.batch_size * factor:,}",
            f"batch-{factor}",
            "batch",
            (f"training.batch_size={base.training.batch_size * factor}", *_warmup(base, factor)),
        )
        for factor in (2, 4)
    ]


def _warmup(base: RunConfig, factor: int) -> tuple[str, ...]:
    steps = base.training.warmup_steps
    return (f"training.warmup_steps={steps // factor}",) if steps else ()


def _activations(base: RunConfig) -> list[Change]:
    if base.model.name not in _WITH_ACTIVATION or base.model.activation != "relu":
        return []
    return [
        Change(f"{name} for ReLU", name, "activation", (f"model.activation={name}",))
        for name in ("tanh", "silu")
    ]


def _pooling(base: RunConfig) -> list[Change]:
    if base.model.name not in ("cnn", "lenet") or base.model.pooling == "average":
        return []
    return [Change("average pooling", "average", "pooling", ("model.pooling=average",))]


def _normalization(base: RunConfig) -> list[Change]:
    if base.model.name != "resnet18" or base.model.normalization == "group":
        return []
    return [Change("GroupNorm", "group", "normalization", ("model.normalization=group",))]


def _epochs(base: RunConfig) -> list[Change]:
    if base.training.learning_rates is not None:
        return []
    epochs = base.training.epochs
    found = [Change("twice the epochs", "epochs-2", "epochs", (f"training.epochs={2 * epochs}",))]
    if epochs > 1:
        half = (f"training.epochs={epochs // 2}", *_warmup(base, 2))
        found.append(Change("half the epochs", "epochs-0.5", "epochs", half))
    return found


def _momentum(base: RunConfig) -> list[Change]:
    training = base.training
    if not training.momentum:
        return []
    # A step without momentum is shorter by this factor in the long run.
    rate = training.learning_rate / (1 - training.momentum)
    overrides = ["training.momentum=0.0", "training.nesterov=false"]
    if training.learning_rates is None:
        overrides.append(f"training.learning_rate={rate!r}")
    return [Change("no momentum", "no-momentum", "rate", tuple(overrides))]


def _schedule(base: RunConfig) -> list[Change]:
    training = base.training
    if training.schedule != "constant" or training.learning_rates is not None:
        return []
    overrides = ("training.schedule=cosine", "training.learning_rate_decay=1.0")
    return [Change("cosine schedule", "cosine", "schedule", overrides)]


_MAKERS: Final[Sequence[Callable[[RunConfig], list[Change]]]] = (
    _rates,
    _batches,
    _activations,
    _pooling,
    _normalization,
    _epochs,
    _momentum,
    _schedule,
)


def frontier(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return those that no other beats in both accuracy and error, by accuracy."""
    known = [each for each in candidates if each["error"] is not None]
    best = [
        each
        for each in known
        if not any(
            other["accuracy"] >= each["accuracy"]
            and other["error"] <= each["error"]
            and (other["accuracy"], other["error"]) != (each["accuracy"], each["error"])
            for other in known
        )
    ]
    return sorted(best, key=lambda each: (each["accuracy"], each["error"]))


def ranked(candidates: Sequence[Candidate], accuracy: float) -> list[Candidate]:
    """Return the candidates, best first: those that keep the accuracy, by their error; then others.

    Args:
        candidates: Measured.
        accuracy: Of the recipe as configured.
    """
    known = [each for each in candidates if each["error"] is not None]
    return sorted(
        known, key=lambda each: (each["accuracy"] < accuracy - ACCEPTED_LOSS, each["error"])
    )


def finalists(candidates: Sequence[Candidate], accuracy: float) -> list[str]:
    """Return the labels of those that get a full pilot: the best, and the most accurate of all."""
    best = [each["label"] for each in ranked(candidates, accuracy)[: FINALISTS - 1]]
    most_accurate = [each["label"] for each in frontier(candidates)[-1:]]
    return list(dict.fromkeys([*best, *most_accurate]))


def pairs(changes: Sequence[Change], best: Sequence[Candidate]) -> list[Change]:
    """Return pairs of the best changes that do not exclude each other, those of the best first."""
    by_label = {change.label: change for change in changes}
    pursued = [by_label[each["label"]] for each in best if each["label"] in by_label][:PURSUED]
    found = [left + right for left, right in combinations(pursued, 2) if left.key != right.key]
    return found[:PAIRS]
