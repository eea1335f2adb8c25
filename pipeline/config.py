"""The configuration: every section as plain data, and the whole, read from YAML.

This module stands at the bottom: it imports no torch and nothing that computes.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.bounds import (
    MAX_BATCH,
    MAX_CHUNK,
    MAX_EPOCHS,
    MAX_GPUS,
    MAX_IMAGE_SIDE,
    MAX_NAME,
    MAX_PARAMETERS,
    MAX_REPEATS,
    MAX_SAMPLES,
    MAX_THREADS,
    MAX_WAIT_SECONDS,
    MAX_WORKERS,
    NotNegative,
    NumSteps,
    NumUnits,
    Positive,
    Widths,
    at_most,
)
from pipeline.config_text import apply_override, explain
from pipeline.config_yaml import one_line, parse, read, write
from pipeline.errors import ConfigError
from pipeline.schema import AbsolutePath, Section
from storage.names import stem_of

Activation = Literal["relu", "tanh", "silu", "gelu"]
# Average pooling is smooth; max pooling has kinks like ReLU's, which no Hessian sees.
Pooling = Literal["max", "average"]
Normalization = Literal["frozen-batch", "group"]
Stem = Literal["imagenet", "small"]
Form = Literal["r-operator", "reverse", "forward-over-reverse"]


class DataConfig(Section):
    """Where the samples come from and what is deleted as one."""

    source: str = "digits"
    path: AbsolutePath | None = None
    """Folder or file of the source, for those that need one."""
    num_train: (
        Annotated[int, Field(ge=1), at_most(MAX_SAMPLES, "all are held in memory")] | None
    ) = None
    """Training samples to keep, drawn by `seed`; null: all."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    unit: Literal["sample", "user"] = "sample"
    user_column: str | None = None
    """Column of the source that names the owner of each sample."""
    input_column: str | None = None
    """Parquet: column of image bytes or arrays; null: image, or else x."""
    label_column: str | None = None
    """Parquet: column of classes; null: label, or else y."""
    image_size: (
        Annotated[
            int, Field(ge=8), at_most(MAX_IMAGE_SIDE, "all enlarged images are held in memory")
        ]
        | None
    ) = None
    """Side in pixels that images are brought to (digits); null: as they are."""


class ModelConfig(Section):
    """Which network, how it starts, and which part of it is trained."""

    name: str = "logistic"
    """logistic, mlp, cnn, lenet, resnet18, or "module:factory" for a user's own."""
    hidden: Widths = (64,)
    """Widths of the hidden layers (mlp)."""
    activation: Activation = "relu"
    pooling: Pooling = "max"
    """cnn and lenet: max, as published, or average, which is smooth."""
    normalization: Normalization = "frozen-batch"
    """resnet18: batch statistics fixed before training, or groups, which have none."""
    stem: Stem = "imagenet"
    """resnet18: 7x7 of stride 2 with pooling, or 3x3 of stride 1, which costs 15 times as much."""
    head_hidden: Widths = ()
    """resnet18: widths of linear layers between the features and the classes."""
    init: AbsolutePath | None = None
    """A safetensors file of weights; null draws them."""
    trainable: str = "all"
    """all, head (the last linear layer), or a part's name: from that part to the end."""
    feature_norm: Positive | None = None
    """With trainable head: scale each feature vector to this L2 norm."""


class TrainingConfig(Section):
    """Plain SGD, the only optimiser the recursion can follow."""

    epochs: Annotated[
        int, Field(ge=1), at_most(MAX_EPOCHS, "the order of all samples is drawn before training")
    ]
    batch_size: Annotated[int, Field(ge=1), at_most(MAX_BATCH, "a minibatch is held in memory")]
    learning_rate: Positive
    learning_rate_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor per *step*: eta_t = learning_rate * decay**t."""
    l2: NotNegative = 0.0
    """Factor of |w|^2 / 2."""
    clip_norm: Positive | None = None
    """Gradient-norm clipping threshold C; null: none."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    shuffle: Literal["each-epoch", "once"] = "each-epoch"

    @model_validator(mode="before")
    @classmethod
    def refuse_what_cannot_be_followed(cls, values: object) -> object:
        """Say why Adam and its like are not there, instead of calling the key unknown."""
        reasons = {
            "optimizer": "the recursion follows plain SGD with momentum; adaptive optimisers such as "
            "Adam divide by running statistics of the gradients, which it does not carry",
            "dropout": "dropout draws a new network at each pass, so the run could not be replayed",
            "augmentation": "augmented samples change from pass to pass, so the run could not be "
            "replayed; augment the data once, beforehand",
        }
        if isinstance(values, dict):
            for key, reason in reasons.items():
                if key in values:
                    raise ValueError(f"training.{key} is not supported: {reason}; remove the key")
        return values


class RetrainingConfig(Section):
    """What retraining without deleted units means; the approximators estimate its result."""

    denominator: Literal["remaining", "batch"] = "remaining"
    """Divide a minibatch's sum by the samples that remain, or by the original |B|."""
    l2_share: Literal["step", "sample"] = "step"
    """Keep the L2 term whole, or let each deleted sample take its share 1/|B| with it."""


class RecursionConfig(Section):
    """How approximators are computed."""

    engine: Literal["hvp", "leave-one-out"] = "hvp"
    """Propagate by Hessian-vector products, or by one gradient at each unit's own weights."""
    own_rows: Literal["left-out", "included"] = "left-out"
    """Whether a unit's own samples count in the Hessian that propagates its row."""
    hvp: Form | Literal["auto"] = "auto"
    chunk: (
        Annotated[int, Field(ge=2), at_most(MAX_CHUNK, "a chunk's tangents are held in memory")]
        | Literal["auto"]
    ) = "auto"
    """Units computed together, K."""
    dtype: Literal["float32", "tf32", "bfloat16", "float64"] = "float32"
    """Arithmetic of the tangents; rows are kept in float32 (float64 for float64)."""
    expected_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """With denominator `batch`, the fraction of the data expected to be deleted together."""
    relu_curvature: Literal["auto", "none", "softplus"] = "auto"
    relu_beta: Positive = 20.0
    checkpoint_every: NumSteps | Literal["auto"] = "auto"
    """Steps between stored parameters."""


class StorageConfig(Section):
    """How rows are encoded and where they lie."""

    encoding: Literal["auto", "float32", "float16", "bfloat16", "int8", "int4"] = "auto"
    """auto: float16 below 100,000 parameters, int8 above."""
    block: NumUnits | Literal["auto"] = "auto"
    """Units whose rows one worker computes and writes together; auto: at most 256, 4 blocks or more."""
    row_error_cap: Positive | Literal["auto"] = "auto"
    """Relative L2 error above which a row is stored wider."""
    row_norm_cap: Positive | None = None
    codec: Literal["none", "zstd", "gzip"] = "none"
    """Lossless compression of the codes."""
    url: str | None = None
    """Where rows lie, if not in the run directory: a URL or an absolute path that ends in .zarr."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None:
            stem_of(url)
            if "://" not in url and not Path(url).is_absolute():
                raise ValueError("expected a URL or an absolute path: workers have other folders")
        return url

    @property
    def units_per_block(self) -> int:
        """The settled `block`.

        Raises:
            ConfigError: While it is still "auto".
        """
        if self.block == "auto":
            raise ConfigError("storage.block is settled when the run is trained; it still is auto")
        return self.block


class ClusterConfig(Section):
    """Machines: how many workers, and what each gets."""

    address: str | None = None
    """An existing Ray cluster; null starts one on this machine."""
    num_workers: (
        Annotated[int, Field(ge=1), at_most(MAX_WORKERS, "one driver follows every worker")]
        | Literal["auto"]
    ) = "auto"
    cpus_per_worker: Annotated[
        int, Field(ge=1), at_most(MAX_THREADS, "a worker starts a thread for each")
    ] = 1
    """Threads of each worker; training uses as many, since threads change the last bits."""
    gpus_per_worker: (
        Annotated[float, Field(ge=0), at_most(MAX_GPUS, "a worker lives on one machine")]
        | Literal["auto"]
    ) = "auto"
    save_every: NumSteps | Literal["auto"] = "auto"
    """Steps between saved states of a block."""
    grow_seconds: Annotated[
        float,
        Field(ge=0),
        at_most(MAX_WAIT_SECONDS, "a week; a cluster that grows later is started later"),
    ] = 0
    """How long to wait for a cluster at `address` to grow to what is asked for."""


class BudgetConfig(Section):
    """What all releases of a run may spend together."""

    epsilon: Positive | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None


class CertificateConfig(Section):
    """Which claim a release carries."""

    kind: Literal["none", "calibrated", "certified", "published"] = "none"
    max_units: NumUnits | None = None
    """The most units that will ever be deleted from the run: its deletion capacity."""
    audit_sets: Annotated[int, Field(ge=1), at_most(MAX_REPEATS, "each is a whole retraining")] = 20
    """calibrated: retrainings without random sets, and as many without clustered ones."""
    feature_norm_cap: Positive | None = None
    """certified: the largest L2 norm that any sample can have, known before the data."""
    budget: BudgetConfig = BudgetConfig()


class EvaluationConfig(Section):
    """Trial deletions that are compared with retraining."""

    deletions: Annotated[
        tuple[NumUnits | Annotated[float, Field(gt=0, lt=1)], ...], Field(max_length=MAX_REPEATS)
    ] = (1, 20, 0.2)
    """Whole numbers are units, fractions a share of the units."""
    repeats: Annotated[int, Field(ge=1), at_most(MAX_REPEATS, "each is a whole retraining")] = 1
    """Random sets per entry."""


class RunConfig(Section):
    """One run, whole. See configs/ for examples and DESIGN in docs/architecture.md for the keys."""

    name: Annotated[str, Field(max_length=MAX_NAME)] = "run"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig
    retraining: RetrainingConfig = RetrainingConfig()
    recursion: RecursionConfig = RecursionConfig()
    storage: StorageConfig = StorageConfig()
    cluster: ClusterConfig = ClusterConfig()
    certificate: CertificateConfig = CertificateConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def check_together(self) -> "RunConfig":
        """Refuse settings that contradict each other."""
        if self.recursion.expected_fraction and self.retraining.denominator != "batch":
            raise ValueError(
                "recursion.expected_fraction needs retraining.denominator: batch; with remaining, "
                "the mass correction does its work"
            )
        if self.recursion.engine == "leave-one-out":
            self._check_leave_one_out()
        self._check_widths()
        if self.training.nesterov and not self.training.momentum:
            raise ValueError("training.nesterov needs training.momentum above 0")
        return self

    def _check_widths(self) -> None:
        """Refuse hidden layers whose weights alone no machine would hold."""
        for key, widths in (("hidden", self.model.hidden), ("head_hidden", self.model.head_hidden)):
            weights = sum(left * right for left, right in pairwise(widths))
            if weights > MAX_PARAMETERS:
                raise ValueError(
                    f"model.{key} makes {weights:,} weights between its layers; expected at most "
                    f"{MAX_PARAMETERS:,}, since every unit's approximator holds as many values"
                )

    def _check_leave_one_out(self) -> None:
        """Refuse what the engine without Hessian products would ignore without a word."""
        if self.recursion.own_rows == "included":
            raise ValueError(
                "recursion.own_rows: included needs recursion.engine: hvp; leave-one-out leaves own "
                "rows out by definition"
            )
        if self.recursion.expected_fraction:
            raise ValueError(
                "recursion.expected_fraction needs recursion.engine: hvp; leave-one-out scales no "
                "Hessians"
            )

    @staticmethod
    def load(path: str | Path, overrides: Sequence[str] = ()) -> "RunConfig":
        """Read a YAML file and apply overrides of the form "section.key=value".

        Raises:
            ConfigError: If the file is missing, is no YAML mapping, or has keys or values that
                are not understood; the message names the key and the nearest known one.
        """
        return RunConfig.from_text(read(Path(path)), str(path), overrides)

    @staticmethod
    def from_text(text: str, source: str, overrides: Sequence[str] = ()) -> "RunConfig":
        """Parse YAML text; `source` names it in messages."""
        try:
            values = parse(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{source} is not valid YAML: {one_line(error)}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{source} must be a mapping of sections (name, data, model, ...)")
        for override in overrides:
            apply_override(values, override)
        return RunConfig.from_values(values, source)

    @staticmethod
    def from_values(values: dict[str, Any], source: str = "the configuration") -> "RunConfig":
        """Validate a mapping as it comes out of YAML or JSON."""
        try:
            # JSON mode is strict about numbers and text, and takes lists for tuples.
            return RunConfig.model_validate_json(json.dumps(values))
        except (TypeError, RecursionError) as error:
            raise ConfigError(
                f"{source}: {one_line(error)}; use plain numbers, text and lists"
            ) from error
        except ValidationError as error:
            raise ConfigError(f"{source}: {explain(RunConfig, error)}") from error
        except ValueError as error:
            # A value that holds itself, or a number of thousands of digits.
            raise ConfigError(f"{source}: {one_line(error)}") from error

    def to_yaml(self) -> str:
        """Return the configuration as YAML text that `load` reads back to an equal one."""
        return write(self.model_dump(mode="json"))
