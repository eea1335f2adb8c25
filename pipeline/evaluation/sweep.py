"""How an error depends on the settings: one setting varied at a time, all others as configured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.config import RunConfig

_FACTORS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
_DECAYS: Final = (1.0, 0.9995, 0.998, 0.995)
_CLIP_NORMS: Final = (None, 3.0, 1.0, 0.3, 0.1)
_WITH_ACTIVATION: Final = ("mlp", "cnn", "lenet", "resnet18")
# What the summary keeps of a trial; the variant's own report has the rest.
_FIGURES: Final = (
    "units",
    "repeats",
    "distance",
    "no_update_distance",
    "relative_error",
    "relative_error_range",
    "loss_change_pearson",
    "test_accuracy",
    "quality",
)

# One entry of a setting's `points`.
Point = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A value of a setting.

    Attributes:
        label: The value in words; also part of a folder's name.
        overrides: Of the form "section.key=value".
    """

    label: str
    overrides: tuple[str, ...]

    def of(self, base: RunConfig) -> RunConfig:
        """Return the configuration with this value.

        Raises:
            ConfigError: If the value contradicts another setting.
        """
        # A sweep compares with retraining alone; audits for certificates would only cost time.
        overrides = ("certificate.kind=none", *self.overrides)
        return RunConfig.from_text(base.to_yaml(), f"the variant {self.label}", overrides)


@dataclass(frozen=True)
class Setting:
    """A setting and the values that are tried.

    Attributes:
        title: Its name on the page.
        is_ordered: Whether its values form a scale.
        variants: The values for a configuration, the configured one among them; none where the
            setting does not apply.
    """

    title: str
    is_ordered: bool
    variants: Callable[[RunConfig], Sequence[Variant]]


def _numbers(key: str, values: Sequence[float]) -> list[Variant]:
    return [Variant(f"{value:g}", (f"{key}={value!r}",)) for value in dict.fromkeys(values)]


def _choices(key: str, values: Sequence[str]) -> Callable[[RunConfig], list[Variant]]:
    return lambda base: [Variant(value, (f"{key}={value}",)) for value in values]


def _step_sizes(base: RunConfig) -> list[Variant]:
    key = "training.learning_rate"
    return _numbers(key, [base.training.learning_rate * factor for factor in _FACTORS])


def _epochs(base: RunConfig) -> list[Variant]:
    counts = [max(1, round(base.training.epochs * factor)) for factor in _FACTORS]
    return _numbers("training.epochs", counts)


def _decays(base: RunConfig) -> list[Variant]:
    values = {*_DECAYS, base.training.learning_rate_decay}
    return _numbers("training.learning_rate_decay", sorted(values, reverse=True))


def _clip_norms(base: RunConfig) -> list[Variant]:
    values = {*_CLIP_NORMS, base.training.clip_norm}
    ordered = sorted(values, key=lambda norm: -norm if norm else float("-inf"))
    return [
        Variant("none", ("training.clip_norm=null",))
        if norm is None
        else Variant(f"{norm:g}", (f"training.clip_norm={norm!r}",))
        for norm in ordered
    ]


def _activations(base: RunConfig) -> list[Variant]:
    if base.model.name not in _WITH_ACTIVATION:
        return []
    relu = "model.activation=relu"
    return [
        Variant("relu-plain", (relu, "recursion.relu_curvature=none")),
        Variant("relu-softplus", (relu, "recursion.relu_curvature=softplus")),
        *(Variant(name, (f"model.activation={name}",)) for name in ("tanh", "silu", "gelu")),
    ]


def _hessians(base: RunConfig) -> list[Variant]:
    return [
        Variant("leave-one-out", ("recursion.own_rows=left-out",)),
        Variant("full-batch", ("recursion.own_rows=included",)),
    ]


SETTINGS: Final[Mapping[str, Setting]] = {
    "step-size": Setting("Step size", True, _step_sizes),
    "epochs": Setting("Epochs", True, _epochs),
    "decay": Setting("Decay of the step size, per step", True, _decays),
    "clipping": Setting("Clipping norm", True, _clip_norms),
    "activation": Setting("Activation", False, _activations),
    "own-rows": Setting("Hessian", False, _hessians),
    "denominator": Setting(
        "Denominator", False, _choices("retraining.denominator", ("remaining", "batch"))
    ),
    "encoding": Setting(
        "Encoding of the approximators",
        False,
        _choices("storage.encoding", ("float32", "float16", "bfloat16", "int8", "int4")),
    ),
}


def point(variant: Variant, report: Mapping[str, Any] | None, refused: str | None) -> Point:
    """Return the figures of a variant that a sweep keeps.

    Args:
        variant: The value.
        report: Its `report.json`, or None.
        refused: Why the variant could not be run, or None.
    """
    trials = [] if report is None else report["deletions"]
    return {
        "label": variant.label,
        "overrides": list(variant.overrides),
        "refused": refused,
        "metric": None if report is None else report.get("metric"),
        "deletions": [{key: trial.get(key) for key in _FIGURES} for trial in trials],
        "bytes_per_parameter": None if report is None else report["bytes_per_parameter"],
    }
