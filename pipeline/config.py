"""The whole configuration: the owners' sections composed, read from YAML, overridden from outside."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from pipeline.data.dataset import DataConfig
from pipeline.deletion import DeletionRule
from pipeline.errors import ConfigError
from pipeline.models.registry import ModelConfig
from pipeline.objective import RetrainingConfig, TrainingConfig
from pipeline.recursion import RecursionConfig
from pipeline.schema import Section
from pipeline.suggestions import nearest
from storage.location import stem_of


class StorageConfig(Section):
    """How rows are encoded and where they lie."""

    encoding: Literal["auto", "float32", "float16", "bfloat16", "int8", "int4"] = "auto"
    """auto: float16 below 100,000 parameters, int8 above."""
    block: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Units whose rows one worker computes and writes together; auto: at most 256, 4 blocks or more."""
    row_error_cap: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Relative L2 error above which a row is stored wider."""
    row_norm_cap: Annotated[float, Field(gt=0)] | None = None
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
    num_workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    cpus_per_worker: Annotated[int, Field(ge=1)] = 1
    """Threads of each worker; training uses as many, since threads change the last bits."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    save_every: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Steps between saved states of a block."""
    grow_seconds: Annotated[float, Field(ge=0)] = 0
    """How long to wait for a cluster at `address` to grow to what is asked for."""


class BudgetConfig(Section):
    """What all releases of a run may spend together."""

    epsilon: Annotated[float, Field(gt=0)] | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None


class CertificateConfig(Section):
    """Which claim a release carries."""

    kind: Literal["none", "calibrated", "certified", "published"] = "none"
    max_units: Annotated[int, Field(ge=1)] | None = None
    """The most units that will ever be deleted from the run: its deletion capacity."""
    audit_sets: Annotated[int, Field(ge=1)] = 20
    """calibrated: retrainings without random sets, and as many without clustered ones."""
    feature_norm_cap: Annotated[float, Field(gt=0)] | None = None
    """certified: the largest L2 norm that any sample can have, known before the data."""
    budget: BudgetConfig = BudgetConfig()


class EvaluationConfig(Section):
    """Trial deletions that are compared with retraining."""

    deletions: tuple[Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)], ...] = (
        1,
        20,
        0.2,
    )
    """Whole numbers are units, fractions a share of the units."""
    repeats: Annotated[int, Field(ge=1)] = 1
    """Random sets per entry."""


class RunConfig(Section):
    """One run, whole. See configs/ for examples and DESIGN in docs/architecture.md for the keys."""

    name: str = "run"
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
        if self.training.nesterov and not self.training.momentum:
            raise ValueError("training.nesterov needs training.momentum above 0")
        return self

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
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise ConfigError(f"configuration file {path} does not exist") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not a text file") from error
        return RunConfig.from_text(text, str(path), overrides)

    @staticmethod
    def from_text(text: str, source: str, overrides: Sequence[str] = ()) -> "RunConfig":
        """Parse YAML text; `source` names it in messages."""
        try:
            values = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"{source} is not valid YAML: {_one_line(error)}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{source} must be a mapping of sections (name, data, model, ...)")
        for override in overrides:
            _apply(values, override)
        return RunConfig.from_values(values, source)

    @staticmethod
    def from_values(values: dict[str, Any], source: str = "the configuration") -> "RunConfig":
        """Validate a mapping as it comes out of YAML or JSON."""
        try:
            # JSON mode is strict about numbers and text, and takes lists for tuples.
            return RunConfig.model_validate_json(json.dumps(values))
        except (TypeError, RecursionError) as error:
            raise ConfigError(f"{source}: {error}; use plain numbers, text and lists") from error
        except ValidationError as error:
            raise ConfigError(f"{source}: {_explain(error)}") from error
        except ValueError as error:
            raise ConfigError(f"{source}: {error}") from error  # a value that holds itself

    def deletion_rule(self, num_samples: int) -> DeletionRule:
        """Return which weights and correction the conventions ask for, n samples trained on."""
        # Leave-one-out propagation leaves own rows out by its nature.
        always_left_out = self.recursion.engine == "leave-one-out"
        return DeletionRule(
            self.retraining.denominator,
            "left-out" if always_left_out else self.recursion.own_rows,
            num_samples,
            min(self.training.batch_size, num_samples),
        )

    def to_yaml(self) -> str:
        """Return the configuration as YAML text that `load` reads back to an equal one."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML with 1e-6 as a number: YAML 1.1 takes an exponent without a dot for text."""


class _Dumper(yaml.SafeDumper):
    """Writes text that `_Loader` would take for a number in quotes."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r} is not of the form section.key=value")
    here = values
    for part in parts[:-1]:
        child = here.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section")
        here = child
    try:
        here[parts[-1]] = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _explain(error: ValidationError) -> str:
    messages = []
    for item in error.errors(include_url=False):
        place = [part for part in item["loc"] if isinstance(part, str | int)]
        key = ".".join(str(part) for part in place if not _is_type_tag(part))
        if item["type"] == "extra_forbidden":
            messages.append(f"key {key!r} {nearest(str(place[-1]), _siblings(place))}")
        elif item["type"] == "missing":
            messages.append(f"key {key!r} is missing; it has no default")
        else:
            message = str(item["msg"]).removeprefix("Value error, ")
            given = item.get("input")
            # A URL may hold a password; where it does not, the message quotes it.
            hidden = isinstance(given, dict) or key == "storage.url"
            shown = "" if hidden else f" (found {given!r})"
            messages.append(f"{key}: {message}{shown}" if key else message)
    return "; ".join(dict.fromkeys(messages))


def _is_type_tag(part: str | int) -> bool:
    """Whether a part of an error's place names a branch of a union, not a key."""
    return isinstance(part, str) and bool(
        re.match(r"^(constrained-|literal\[|float|int$|function)", part)
    )


def _siblings(place: Sequence[str | int]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in place[:-1]:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return list(model.model_fields)
