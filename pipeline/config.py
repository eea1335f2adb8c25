"""The configuration: every section as plain data, and the whole, read from YAML.

All sections are imported from here, wherever they are defined. This module and the two that it
gathers stand at the bottom: they import no torch and nothing that computes.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.bounds import (
    MAX_CHUNK,
    MAX_GPUS,
    MAX_NAME,
    MAX_PARAMETERS,
    MAX_REPEATS,
    MAX_THREADS,
    MAX_WAIT_SECONDS,
    MAX_WORKERS,
    NumSteps,
    NumUnits,
    Positive,
    at_most,
)
from pipeline.config_data import (
    CropConfig,
    CutoutConfig,
    DataConfig,
    FlipConfig,
    JitterConfig,
    NoiseConfig,
    TransformConfig,
)
from pipeline.config_text import apply_override, explain
from pipeline.config_training import (
    LOSSES,
    OVER_CLASSES,
    Activation,
    ModelConfig,
    Normalization,
    ParameterGroup,
    Pooling,
    RetrainingConfig,
    Stem,
    TrainingConfig,
)
from pipeline.config_yaml import one_line, parse, read, write
from pipeline.errors import ConfigError
from pipeline.schema import Section
from storage.names import stem_of

__all__ = [
    "LOSSES",
    "OVER_CLASSES",
    "Activation",
    "BudgetConfig",
    "CertificateConfig",
    "ClusterConfig",
    "CropConfig",
    "CutoutConfig",
    "DataConfig",
    "EvaluationConfig",
    "FlipConfig",
    "Form",
    "JitterConfig",
    "ModelConfig",
    "NoiseConfig",
    "Normalization",
    "ParameterGroup",
    "Pooling",
    "RecursionConfig",
    "RetrainingConfig",
    "RunConfig",
    "Stem",
    "StorageConfig",
    "TrainingConfig",
    "TransformConfig",
]

Form = Literal["r-operator", "reverse", "forward-over-reverse", "explicit"]


class RecursionConfig(Section):
    """How approximators are computed."""

    engine: Literal["hvp", "leave-one-out", "weighing", "auto"] = "hvp"
    """Propagate by Hessian-vector products, by one gradient at each unit's own weights, or by designed
    group retrainings (weighing), which serve sets on rough networks; auto: what a pilot finds nearer to
    retraining (`unlearn pilot`)."""
    leave_one_out: Literal["weights", "differences"] | None = None
    """What leave-one-out carries for each unit: its own weights, or their difference from the run's
    (runs begun with version 0.2.0). null: weights."""
    own_rows: Literal["left-out", "included"] = "left-out"
    """Leave a unit's own samples out of the Hessian (leave-one-out), or include them (full-batch)."""
    hvp: Form | Literal["auto"] = "auto"

    """Form of the Hessian-vector products; auto: the R-operator where it can follow the network, the
    explicit matrix where parameters are few beside a minibatch's samples and a block's units."""
    chunk: (
        Annotated[int, Field(ge=2), at_most(MAX_CHUNK, "a chunk's tangents are held in memory")]
        | Literal["auto"]
    ) = "auto"
    """Units computed together, K. Unit: units."""
    dtype: Literal["float32", "tf32", "bfloat16", "float64"] = "float32"
    """Arithmetic of the tangents; approximators are kept in float32 (float64 for float64)."""
    mass_exponent: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """rho of the correction ((n - n_u) / (n - M))**rho; auto: 1 with sgd, 0.5 with adam and adamw."""
    expected_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """With denominator `batch`, the fraction of the data expected to be deleted together."""
    class_terms: bool = False
    """Add a vector for each class, from a retraining without half of it, where deletions fall on some
    classes more than on others. Needs samples that are each of one class."""
    relu_curvature: Literal["auto", "none", "softplus"] = "auto"

    """Second derivative given to ReLU; auto: softplus for ReLU networks without convolutions."""
    relu_beta: Positive = 20.0
    """Sharpness beta of that softplus."""
    checkpoint_every: NumSteps | Literal["auto"] = "auto"
    """Steps between stored parameters; auto: about 20 checkpoints in all. Unit: steps."""


class StorageConfig(Section):
    """How approximators are encoded and where they are stored."""

    encoding: Literal["auto", "float32", "float16", "bfloat16", "int8", "int4"] = "auto"

    """Number format of approximators; auto: float16 below 100,000 parameters, int8 above."""
    block: NumUnits | Literal["auto"] = "auto"
    """Units that one worker computes and writes together; auto: 4 blocks or more of at most 256, of up
    to 4,096 where rows are small and units many. Unit: units."""
    row_error_cap: Positive | Literal["auto"] = "auto"
    """Relative L2 error above which a wider format is used; auto: the encoding's own."""
    row_norm_cap: Positive | None = None
    """Largest L2 norm of an approximator; larger ones are refused. null: no cap."""
    codec: Literal["none", "zstd", "gzip"] = "none"
    """Lossless compression of the codes."""
    url: str | None = None
    """A store outside the run directory: a URL or an absolute path that ends in .zarr."""

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
    """Workers: how many, on which machines, with which resources."""

    address: str = "auto"
    """none (no Ray), local (Ray on this machine), a cluster's host:port, or auto, which chooses."""
    num_workers: (
        Annotated[int, Field(ge=1), at_most(MAX_WORKERS, "one driver follows every worker")]
        | Literal["auto"]
    ) = "auto"
    """Worker processes; auto: as many as processors, GPUs and memory allow. Unit: workers."""
    cpus_per_worker: Annotated[
        int, Field(ge=1), at_most(MAX_THREADS, "a worker starts a thread for each")
    ] = 1
    """Threads of each worker; training uses as many, since threads change the last bits. Unit:
    threads."""
    gpus_per_worker: (
        Annotated[float, Field(ge=0), at_most(MAX_GPUS, "a worker lives on one machine")]
        | Literal["auto"]
    ) = "auto"
    """GPUs of each worker, also a fraction; auto: one where there are any. Unit: GPUs."""
    save_every: NumSteps | Literal["auto"] = "auto"
    """Steps between saved states of a block; auto: every 15 seconds. Unit: steps."""
    group: str | None = None
    """Group of this machine's users that may read reports and releases; null: the owner alone."""
    grow_seconds: Annotated[
        float,
        Field(ge=0),
        at_most(MAX_WAIT_SECONDS, "a week; a cluster that grows later is started later"),
    ] = 0
    """How long to wait for a cluster at `address` to grow to what is asked for. Unit: seconds."""

    @field_validator("address", mode="before")
    @classmethod
    def _check_address(cls, address: object) -> object:
        """Take null for auto, as version 0.1 wrote it; refuse other words."""
        if address is None:
            return "auto"
        words = ("none", "local", "auto")
        if isinstance(address, str) and address not in words and ":" not in address:
            raise ValueError(
                "expected none, local, auto, or host:port of a Ray cluster's head such as "
                "10.0.0.5:6379"
            )
        return address


class BudgetConfig(Section):
    """What all releases of a run may spend together."""

    epsilon: Positive | None = None
    """Largest epsilon of all releases together; null: no budget. Needs `delta`."""
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Largest delta of all releases together; null: no budget. Needs `epsilon`."""


class CertificateConfig(Section):
    """Which claim a release carries."""

    kind: Literal["none", "calibrated", "certified", "published"] = "none"

    """The claim: none, measured on audit retrainings (calibrated), proved for softmax regression
    (certified), or the formula of the paper's released code (published)."""
    max_units: NumUnits | None = None
    """The most units that will ever be deleted from the run: its deletion capacity. Unit: units."""
    audit_sets: Annotated[int, Field(ge=1), at_most(MAX_REPEATS, "each is a whole retraining")] = 20
    """calibrated: retrainings without random sets, and as many without clustered ones. Unit: sets."""
    feature_norm_cap: Positive | None = None
    """certified: the largest L2 norm that any sample can have, known before the data."""
    budget: BudgetConfig = BudgetConfig()


class EvaluationConfig(Section):
    """Trial deletions that are compared with retraining."""

    deletions: Annotated[
        tuple[NumUnits | Annotated[float, Field(gt=0, lt=1)], ...], Field(max_length=MAX_REPEATS)
    ] = (1, 20, 0.2)
    """Sizes of the sets: whole numbers count units, fractions are a share of the units."""
    repeats: Annotated[int, Field(ge=1), at_most(MAX_REPEATS, "each is a whole retraining")] = 1
    """Random sets per entry of `deletions`. Unit: sets."""
    max_error: Positive | None = 0.5
    """Largest measured relative error at which a deletion is released. null: no limit."""
    require_measured: bool = False
    """Refuse deletions where no error was measured."""


class RunConfig(Section):
    """One run, whole: configs/ has examples, docs/configuration.md every key."""

    name: Annotated[str, Field(max_length=MAX_NAME)] = "run"
    """Of the run, in reports and jobs."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Seeds the split, the starting weights, the order of samples and the sets of trial deletions."""
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
        if self.recursion.engine in ("leave-one-out", "weighing"):
            self._check_without_products()
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

    def _check_without_products(self) -> None:
        """Refuse what the engines without Hessian products would ignore without a word."""
        if self.recursion.own_rows == "included":
            raise ValueError(
                f"recursion.own_rows: included needs recursion.engine: hvp; {self.recursion.engine} "
                "leaves own rows out by definition"
            )
        if self.recursion.expected_fraction:
            raise ValueError(
                f"recursion.expected_fraction needs recursion.engine: hvp; {self.recursion.engine} "
                "scales no Hessians"
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
