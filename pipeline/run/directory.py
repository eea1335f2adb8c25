"""A run directory: where everything that belongs to one run lies (docs/architecture.md).

To name and open a run needs no torch; only `prepare`, `problem` and `trajectory` import it.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline import config_yaml
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, TrajectoryError
from pipeline.run.checkpoints import INPUTS, check, is_recorded, recorded_digest
from pipeline.run.settings import (
    FIXED,
    GATE,
    SETTINGS,
    fixed_settings,
    read_settings,
    refuse_changed,
)
from storage.durable_write import write_atomically
from storage.errors import LayoutError
from storage.run_lock import RunLock
from storage.store import ApproximatorStore

if TYPE_CHECKING:
    import torch

    from pipeline.run.problem import Problem
    from pipeline.run.trajectory import Trajectory

TRAJECTORY = "trajectory"
# A pilot's folder. It may be there before the run is, and so may the data's inputs.
PILOT = "pilot"
CONTINUATION = Path("internal", "continuation.safetensors")
RETRAINING = Path("internal", "retraining.json")


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run, and its configuration as resolved."""

    path: Path
    config: RunConfig

    @staticmethod
    def prepare(path: str | Path, config: RunConfig) -> tuple["RunDirectory", "Problem"]:
        """Bring a configuration to life in a folder: as begun there, if it was.

        Raises:
            ConfigError: As `create`.
        """
        from pipeline.run.problem import Problem

        recorded = Path(path).absolute() / TRAJECTORY
        if (recorded.parent / "config.yaml").is_file():
            # Before anything is read: another model's tensors would fail with a stranger message.
            existing = RunDirectory.open(path)
            config = existing._with_own_rules(config)
            existing._require_same(config, ("seed", "data", "model"))
        else:
            # Before anything is written: large inputs are kept in the folder as they are read.
            _refuse_foreign(recorded.parent)
        problem = Problem.of(config, recorded=recorded)
        return RunDirectory.create(path, problem), problem

    @staticmethod
    def create(path: str | Path, problem: "Problem") -> "RunDirectory":
        """Make the folder and write `config.yaml`; with the same configuration, open it instead.

        Raises:
            ConfigError: If the folder belongs to another configuration, or holds something else.
        """
        path = Path(path).absolute()
        if (path / "config.yaml").exists():
            existing = RunDirectory.open(path)
            existing._require_same(problem.config)
            existing._require_same_certificate(problem.config)
            updated = RunDirectory(path, problem.config)
        else:
            _refuse_foreign(path)
            _make(path, problem.config.cluster.group)
            updated = RunDirectory(path, problem.config)
        updated.write_config(problem.environment())
        return updated

    def write_config(self, environment: dict[str, Any]) -> None:
        """Write `config.yaml`, unless it says just that already."""
        values = self.config.model_dump(mode="json") | {"environment": environment}
        content = config_yaml.write(values).encode()
        path = self.path / "config.yaml"
        if not path.exists() or path.read_bytes() != content:
            write_atomically(path, content)

    @staticmethod
    def open(path: str | Path) -> "RunDirectory":
        """Open an existing run directory.

        Raises:
            ConfigError: If there is none, or its configuration cannot be read, or was changed after
                the training.
            TrajectoryError: If what training fixed cannot be read.
        """
        path = Path(path).absolute()
        if not (path / "config.yaml").is_file():
            raise ConfigError(
                f"{path} is no run directory (it has no config.yaml); make one with "
                "`unlearn train CONFIG --out DIR` or `unlearn run`"
            )
        values = _read(path / "config.yaml")
        values.pop("environment", None)
        _set_rule_of_first_version(values)
        config = RunConfig.from_values(values, str(path / "config.yaml"))
        bound = read_settings(path / TRAJECTORY)
        if bound is not None:
            refuse_changed(path / "config.yaml", bound, fixed_settings(config))
        elif not (path / "pruned").exists() and is_recorded(path / TRAJECTORY, SETTINGS):
            check(path / TRAJECTORY, SETTINGS)  # listed and gone: refused by name
        return RunDirectory(path, config)

    def _with_own_rules(self, config: RunConfig) -> RunConfig:
        """Return the configuration with this run's rules where it names none.

        They are the rule of sample ids, and what the leave-one-out engine carries.
        """
        data, recursion = config.data, config.recursion
        if "sample_ids" not in data.model_fields_set:
            data = data.model_copy(update={"sample_ids": self.config.data.sample_ids})
        if "leave_one_out" not in recursion.model_fields_set:
            kept = {"leave_one_out": self.config.recursion.leave_one_out}
            recursion = recursion.model_copy(update=kept)
        return config.model_copy(update={"data": data, "recursion": recursion})

    def _require_same(self, config: RunConfig, sections: Sequence[str] = FIXED) -> None:
        for section in sections:
            mine, theirs = getattr(self.config, section), getattr(config, section)
            if mine != theirs:
                difference = _difference(section, mine, theirs)
                raise ConfigError(
                    f"{self.path} belongs to another configuration ({difference}); choose another "
                    "--out"
                )
        threads = self.config.cluster.cpus_per_worker
        if threads != config.cluster.cpus_per_worker:
            raise ConfigError(
                f"{self.path} was trained with cluster.cpus_per_worker {threads}, which fixes the "
                f"last bits of its rows; found {config.cluster.cpus_per_worker}; choose another --out"
            )

    def _require_same_certificate(self, config: RunConfig) -> None:
        """Once deletions can arrive, what a release claims changes by command alone."""
        if not self.ledger_path.exists():
            return
        mine, theirs = self.config.certificate, config.certificate
        if mine != theirs:
            raise ConfigError(
                f"{self.path} has a ledger ({_difference('certificate', mine, theirs)}); change what "
                f"may change with `unlearn configure {self.path} certificate...=...`, or choose "
                "another --out"
            )
        for key in (name.partition(".")[2] for name in GATE):
            was, now = getattr(self.config.evaluation, key), getattr(config.evaluation, key)
            if was != now:
                raise ConfigError(
                    f"{self.path} has a ledger (evaluation.{key} is {was!r} there, {now!r} here); "
                    f"change it with `unlearn configure {self.path} evaluation.{key}=...`, or choose "
                    "another --out"
                )

    def problem(self, device: "torch.device | None" = None) -> "Problem":
        """Load data and model."""
        from pipeline.run.problem import Problem

        return Problem.of(self.config, device, self.trajectory_folder)

    def trajectory(self, generation: int = 0) -> "Trajectory":
        """Open the recorded training, or the fine-tuning that made a later generation.

        Raises:
            TrajectoryError: If the run is not trained yet, or was pruned.
        """
        from pipeline.run.trajectory import Trajectory

        self.refuse_pruned()
        return Trajectory.open(self.trajectory_folder_of(generation))

    def refuse_pruned(self) -> None:
        """Raise TrajectoryError if the run was pruned."""
        if self.is_pruned():
            raise TrajectoryError(
                f"{self.path} was pruned: what deletion, repair and audit need is gone for good"
            )

    @property
    def trajectory_folder(self) -> Path:
        """Where the training is recorded."""
        return self.path / TRAJECTORY

    def trajectory_folder_of(self, generation: int) -> Path:
        """Where a generation's training is recorded: 0 as trained, one more after each repair."""
        return self.path / (f"{TRAJECTORY}-{generation}" if generation else TRAJECTORY)

    @property
    def state_folder(self) -> Path:
        """Where unfinished blocks are saved."""
        return self.path / "state"

    @property
    def continuation_path(self) -> Path:
        """Where a repair under way keeps what its rows start from."""
        return self.path / CONTINUATION

    @property
    def retraining_path(self) -> Path:
        """Where a retraining says which generation and schedule it trains."""
        return self.path / RETRAINING

    def retrained_generation(self) -> int | None:
        """Return the last generation that was, or is being, trained from the start; None for none."""
        try:
            generation = json.loads(self.retraining_path.read_text(encoding="utf-8"))["generation"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return generation if isinstance(generation, int) else None

    @property
    def ledger_path(self) -> Path:
        """Where requests, batches and releases are recorded."""
        return self.path / "ledger.sqlite"

    @property
    def ledger_lock_path(self) -> Path:
        """The file that one process at a time locks for deletions."""
        return self.path / "ledger.lock"

    @property
    def declaration_path(self) -> Path:
        """Where the run's declared sensitivities lie."""
        return self.path / "internal" / "declaration.json"

    @property
    def store_url(self) -> str | Path:
        """Where the rows lie."""
        return self.config.storage.url or self.path / "approximators.zarr"

    def stored(self) -> ApproximatorStore | None:
        """Open the run's store for reading; None if no approximator was ever laid out.

        Raises:
            StorageError: If it is damaged, or gone.
        """
        try:
            return ApproximatorStore.open(self.store_url)
        except LayoutError:
            if self.manifest_exists():
                raise
            return None

    def manifest_exists(self) -> bool:
        """Whether rows were ever laid out in this run's own folder."""
        places = ("approximators.parquet", "approximators.manifest/index.json")
        return any((self.path / place).exists() for place in places)

    def store_id(self) -> str:
        """Return the name of this run's store: 32 digits of the trajectory's digest.

        So that rows of one run can never pass for those of another.
        """
        return self.digest()[:32]

    def refuse_store_of_another(self, store_id: str) -> None:
        """Refuse rows of another run: their sum would be released, and they would be erased.

        Raises:
            ConfigError: If the store does not bear this run's name.
        """
        if store_id != self.store_id():
            raise ConfigError(
                f"the store at {self.store_url} is another run's: storage.url in "
                f"{self.path / 'config.yaml'}, the rows or the trajectory was changed; put it back"
            )

    def digest(self) -> str:
        """Return the digest that the training bears, unchecked: it names the run.

        Raises:
            TrajectoryError: If the run is not trained yet.
        """
        found = recorded_digest(self.trajectory_folder)
        if found is None:
            raise TrajectoryError(
                f"{self.trajectory_folder} holds no finished trajectory; run `unlearn train` first"
            )
        return found

    def is_trained(self) -> bool:
        """Whether the trajectory is complete, or was before the run was pruned."""
        return self.is_pruned() or (self.trajectory_folder / "digest").is_file()

    def is_pruned(self) -> bool:
        """Whether the operator removed what deletions, repair and audit need."""
        return (self.path / "pruned").exists()

    def environment(self) -> dict[str, Any]:
        """Return versions and machine, as recorded at training."""
        return dict(_read(self.path / "config.yaml").get("environment", {}))


def _refuse_foreign(path: Path) -> None:
    if path.exists() and (not path.is_dir() or _holds_something_else(path)):
        raise ConfigError(
            f"{path} exists and is no run directory; choose another --out, or empty it"
        )


def _holds_something_else(path: Path) -> bool:
    return any(entry.name not in (PILOT, INPUTS) for entry in path.iterdir())


def _make(path: Path, group: str | None) -> None:
    """Make a run directory that its owner alone can enter, or a group as well."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Made before, by the person or by a test: what will lie in it describes people all the same.
    path.chmod(0o700)
    if group is None:
        return
    try:
        shutil.chown(path, group=group)
    except (LookupError, PermissionError) as error:
        raise ConfigError(
            f"cluster.group: the run cannot be given to group {group!r} ({error}); name a group that "
            "you belong to"
        ) from error
    path.chmod(0o2750)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = config_yaml.parse_recorded(config_yaml.read(path))
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path} is damaged, no valid YAML: {config_yaml.one_line(error)}"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is damaged: it holds no sections")
    return values


def _set_rule_of_first_version(values: dict[str, Any]) -> None:
    """Name the rule of sample ids in a file of version 0.1.0, which knew one rule and no key for it."""
    data = values.setdefault("data", {})
    if isinstance(data, dict):
        data.setdefault("sample_ids", "position")


def _difference(section: str, mine: object, theirs: object) -> str:
    if isinstance(mine, int):
        return f"{section} is {mine}, asked for {theirs}"
    # As a configuration has them, not as Python shows sections of sections.
    left, right = (side.model_dump(mode="json") for side in (mine, theirs))  # type: ignore[attr-defined]
    key = next(key for key in left if left[key] != right[key])
    return f"{section}.{key} is {left[key]!r} there, {right[key]!r} here"


@contextmanager
def exclusive(run: RunDirectory) -> Iterator[None]:
    """Hold the run for one driver at a time; the refusal names who holds it."""
    with RunLock(run.path / "driver.lock"):
        yield
