"""The audit of a run: deletions compared with retraining and baselines, and membership inference.

Distance to retraining and correlation of loss changes, by deletion rate and seed; norm of the
estimated change against that of the actual one. Then both membership inference attacks on every
method's model, and quality and attacks against the noise of a certificate (docs/results.md).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.evaluation.audit_trial import HESSIAN_FREE, METHODS, Subject, Trial, draw_trial
from pipeline.evaluation.membership.attacks import Attacks
from pipeline.evaluation.membership.shadow import ShadowPlan, Targets, train_shadows
from pipeline.evaluation.privacy_utility import NoisePlan, privacy_utility
from pipeline.evaluation.trials import num_units_to_delete
from pipeline.models.losses import CrossEntropy
from pipeline.progress import Progress, silent
from pipeline.suggestions import nearest
from storage.durable_write import write_atomically

# Results of another version are computed again.
_VERSION = 2


@dataclass
class CachedResults:
    """A folder of results that belong to one run.

    Attributes:
        folder: Made when the first result is written.
        identity: Digest of the run; results of another run are computed again.
        total: Results of the whole audit, for progress.
        progress: Called after each result with those done and `total`.
        done: Results so far.
    """

    folder: Path
    identity: str
    total: int
    progress: Progress = silent
    done: int = 0

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return the stored result of this name, or compute and store it.

        Args:
            name: A file name without its ending.
            compute: Returns plain values that JSON can hold.
        """
        path = self.folder / f"{name}.json"
        found = self._read(path)
        if found is None:
            found = {"version": _VERSION, "run": self.identity, "value": compute()}
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Confidences on deleted samples: readable by the operator only.
            write_atomically(path, json.dumps(found, allow_nan=False).encode(), mode=0o600)
        self.done += 1
        self.progress(self.done, self.total)
        return found["value"]

    def _read(self, path: Path) -> dict[str, Any] | None:
        """Return a result of this run, or None if it is missing, damaged or another run's."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(found, dict) or "value" not in found:
            return None
        same = found.get("version") == _VERSION and found.get("run") == self.identity
        return found if same else None


# What is averaged; each becomes [mean, lowest, highest].
FIGURES = (
    "distance",
    "relative_error",
    "pearson",
    "spearman",
    "quality",
    "test_accuracy",
    "seconds",
    "actual_norm",
    "estimated_norm",
)


def summarise(figures: Sequence[Mapping[str, Any]], num_units: int) -> dict[str, Any]:
    """Return the report's `audit`: by deletion and method, and norm against norm of every trial.

    Args:
        figures: One mapping per trial and method, with `units`, `seed`, `method` and `FIGURES`;
            a figure may be None where it has no meaning.
        num_units: Units trained on.
    """
    methods = list(dict.fromkeys(figure["method"] for figure in figures))
    deletions = []
    for units in sorted({figure["units"] for figure in figures}):
        here = [figure for figure in figures if figure["units"] == units]
        deletions.append(
            {
                "units": units,
                "seeds": len({figure["seed"] for figure in here}),
                "methods": {
                    method: {
                        key: _span(f[key] for f in here if f["method"] == method) for key in FIGURES
                    }
                    for method in methods
                },
            }
        )
    norms = {
        method: [
            [f["units"], f["actual_norm"], f["estimated_norm"]]
            for f in figures
            if f["method"] == method
        ]
        for method in methods
        if method not in {"no-update", "retrain"}
    }
    return {"num_units": num_units, "methods": methods, "deletions": deletions, "norms": norms}


def _span(values: Iterable[float | None]) -> list[float] | None:
    """Return [mean, lowest, highest] of the values there are, or None."""
    present = [value for value in values if value is not None]
    return [sum(present) / len(present), min(present), max(present)] if present else None


@dataclass(frozen=True)
class AttackPlan:
    """Attacks on one forget set.

    Attributes:
        deletion: How many units, as an entry of `evaluation.deletions`.
        num_shadows: Shadow models of MIA-L.
        noise: Which noise the privacy-utility curve tries; None: no curve.
    """

    deletion: int | float = 0.2
    num_shadows: int = 32
    noise: NoisePlan | None = None


@dataclass(frozen=True)
class AuditPlan:
    """What is audited.

    Attributes:
        deletions: As in `evaluation.deletions`: units, or shares of them.
        seeds: One random forget set per entry and seed.
        methods: Names out of `METHODS`.
        attack: None: no attacks.
    """

    deletions: tuple[int | float, ...] = (0.01, 0.05, 0.1, 0.2, 0.3)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    methods: tuple[str, ...] = METHODS
    attack: AttackPlan | None = None

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHODS:
                raise ConfigError(f"audit method {name!r} {nearest(name, METHODS)}")
        if not (self.deletions and self.seeds and self.methods):
            raise ConfigError("an audit needs at least one deletion rate, one seed and one method")

    @property
    def num_results(self) -> int:
        """Number of results, for progress."""
        count = len(self.deletions) * len(self.seeds) * len(self.methods)
        if self.attack is not None:
            count += self.attack.num_shadows + len(self.methods)
            count += len(self.attack.noise.epsilons) if self.attack.noise else 0
        return count


def run_audit(
    subject: Subject, plan: AuditPlan, folder: Path, progress: Progress = silent
) -> dict[str, Any]:
    """Audit a run and return the value of the report's `audit`.

    Args:
        subject: The run.
        plan: Rates, seeds, methods, attacks.
        folder: Where finished results are kept; a later call continues from them.
        progress: Called after each result with the number done and the total.

    Raises:
        ConfigError: If a deletion leaves no unit, or empties a class of the training data.
    """
    num_units = len(subject.problem.data.units)
    results = CachedResults(folder, subject.trajectory.digest, plan.num_results, progress)
    figures = []
    counts = {entry: num_units_to_delete(entry, num_units) for entry in plan.deletions}
    for count in counts.values():
        for seed in plan.seeds:
            trial = draw_trial(subject, count, seed)
            for method in plan.methods:
                name = f"verify-{count}-{seed}-{method}"
                value = results.get(name, partial(trial.verify, method))
                figures.append({"units": count, "seed": seed, "method": method} | value)
    audit = summarise(figures, num_units)
    if plan.attack is not None:
        audit |= _attack(subject, plan, plan.attack, results)
    return audit


def _attack(
    subject: Subject, plan: AuditPlan, attack: AttackPlan, results: CachedResults
) -> dict[str, Any]:
    seed = plan.seeds[0]
    count = num_units_to_delete(attack.deletion, len(subject.problem.data.units))
    trial = draw_trial(subject, count, seed)
    forgotten_ids = trial.task.forgotten_ids
    shadows = train_shadows(
        subject.problem,
        forgotten_ids,
        ShadowPlan(attack.num_shadows, seed),
        lambda number, compute: results.get(f"shadow-{count}-{seed}-{number}", compute),
    )
    targets = Targets.of(subject.problem, forgotten_ids)
    attacks = Attacks(subject.problem, targets, shadows, subject.trained_P, seed)
    evaluated = {
        method: results.get(
            f"attack-{count}-{seed}-{attack.num_shadows}-{method}",
            partial(_evaluate, attacks, trial, method),
        )
        for method in plan.methods
    }
    found: dict[str, Any] = {
        "attacks": {
            "units": count,
            "num_shadows": attack.num_shadows,
            "score": "logit" if isinstance(subject.problem.network.loss, CrossEntropy) else "loss",
            "methods": evaluated,
        }
    }
    if attack.noise is not None:
        found["privacy_utility"] = privacy_utility(
            attacks,
            trial.unlearn(HESSIAN_FREE)[0],
            attack.noise,
            lambda name, compute: results.get(
                f"noise-{count}-{seed}-{attack.num_shadows}-{name}", compute
            ),
        )
    return found


def _evaluate(attacks: Attacks, trial: Trial, method: str) -> dict[str, Any]:
    return attacks.evaluate_all(trial.unlearn(method)[0])
