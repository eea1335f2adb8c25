"""The audit of a run: deletions against real retraining and the baselines, and attacks on them.

Verification I: distance to retraining and correlation of loss changes, by deletion rate and seed.
Verification II: |estimated change| against |real change|. Then both membership attacks on every
method's model, and accuracy and attacks against the noise of a certificate (docs/method.md, section 8).
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.evaluation.audit_cells import Cells
from pipeline.evaluation.audit_summary import summarise
from pipeline.evaluation.audit_trial import HESSIAN_FREE, METHODS, Subject, Trial, draw_trial
from pipeline.evaluation.membership.attacks import Attacks
from pipeline.evaluation.membership.shadow import ShadowPlan, train_shadows
from pipeline.evaluation.membership.targets import Targets
from pipeline.evaluation.privacy_utility import NoisePlan, privacy_utility
from pipeline.evaluation.trial import num_units_to_delete
from pipeline.progress import Progress, silent
from pipeline.suggestions import nearest


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
    def num_cells(self) -> int:
        """Parts that progress counts."""
        cells = len(self.deletions) * len(self.seeds) * len(self.methods)
        if self.attack is not None:
            cells += self.attack.num_shadows + len(self.methods)
            cells += len(self.attack.noise.epsilons) if self.attack.noise else 0
        return cells


def run_audit(
    subject: Subject, plan: AuditPlan, folder: Path, progress: Progress = silent
) -> dict[str, Any]:
    """Audit a run and return the value of the report's `audit`.

    Args:
        subject: The run.
        plan: Rates, seeds, methods, attacks.
        folder: Where finished parts are kept; a later call continues from them.
        progress: Called after each part with the parts done and all of them.

    Raises:
        ConfigError: If a deletion leaves no unit, or empties a class of the training data.
    """
    num_units = len(subject.problem.data.units)
    cells = Cells(folder, subject.trajectory.digest, plan.num_cells, progress)
    figures = []
    counts = {entry: num_units_to_delete(entry, num_units) for entry in plan.deletions}
    for count in counts.values():
        for seed in plan.seeds:
            trial = draw_trial(subject, count, seed)
            for method in plan.methods:
                name = f"verify-{count}-{seed}-{method}"
                value = cells.get(name, partial(trial.verify, method))
                figures.append({"units": count, "seed": seed, "method": method} | value)
    audit = summarise(figures, num_units)
    if plan.attack is not None:
        audit |= _attack(subject, plan, plan.attack, cells)
    return audit


def _attack(subject: Subject, plan: AuditPlan, attack: AttackPlan, cells: Cells) -> dict[str, Any]:
    seed = plan.seeds[0]
    count = num_units_to_delete(attack.deletion, len(subject.problem.data.units))
    trial = draw_trial(subject, count, seed)
    forgotten_ids = trial.forgetting.forgotten_ids
    shadows = train_shadows(
        subject.problem,
        forgotten_ids,
        ShadowPlan(attack.num_shadows, seed),
        lambda number, compute: cells.get(f"shadow-{count}-{seed}-{number}", compute),
    )
    targets = Targets.of(subject.problem, forgotten_ids)
    attacks = Attacks(subject.problem, targets, shadows, subject.trained_P, seed)
    judged = {
        method: cells.get(
            f"attack-{count}-{seed}-{attack.num_shadows}-{method}",
            partial(_judge, attacks, trial, method),
        )
        for method in plan.methods
    }
    found: dict[str, Any] = {
        "attacks": {"units": count, "num_shadows": attack.num_shadows, "methods": judged}
    }
    if attack.noise is not None:
        found["privacy_utility"] = privacy_utility(
            attacks,
            trial.unlearn(HESSIAN_FREE)[0],
            attack.noise,
            lambda name, compute: cells.get(
                f"noise-{count}-{seed}-{attack.num_shadows}-{name}", compute
            ),
        )
    return found


def _judge(attacks: Attacks, trial: Trial, method: str) -> dict[str, Any]:
    return attacks.judge(trial.unlearn(method)[0])
