"""`unlearn audit`: the run against baselines, retraining and membership inference."""

from pathlib import Path
from typing import Any

from cluster.console import Reporter
from pipeline.certificates.privacy import sigma_for
from pipeline.certificates.sensitivity import read_declaration
from pipeline.config import RunConfig
from pipeline.deletion.class_terms import class_terms_of
from pipeline.errors import ConfigError
from pipeline.evaluation.audit import AttackPlan, AuditPlan, run_audit
from pipeline.evaluation.audit_trial import Subject
from pipeline.evaluation.privacy_utility import NoisePlan
from pipeline.evaluation.report import read_report, write_report
from pipeline.evaluation.trials import local_sum
from pipeline.run.directory import RunDirectory, exclusive
from pipeline.run.store import refuse_repaired
from storage.store import ApproximatorStore

# The privacy-utility curve: from strong privacy to hardly any.
EPSILONS = (0.5, 1.0, 2.0, 5.0, 10.0, 50.0)
DELTA = 1e-5


def audited_run(target: Path, reporter: Reporter) -> RunDirectory:
    """Return the run at a run directory, or made from a configuration file first."""
    if target.is_dir():
        return RunDirectory.open(target)
    from cluster.whole_run import run_all

    config = RunConfig.load(target)
    out = Path("runs") / config.name
    run_all(config, out, reporter)
    return RunDirectory.open(out)


def plan_of(
    run: RunDirectory, rates: tuple[int | float, ...], num_seeds: int, num_shadows: int
) -> AuditPlan:
    """Return what is audited: rates by seeds by methods, and attacks if there are shadow models."""
    noise = None
    declaration = read_declaration(run)
    if declaration.kind != "none":
        delta_2 = declaration.for_units(declaration.capacity).total
        noise = NoisePlan(EPSILONS, lambda epsilon: sigma_for(delta_2, epsilon, DELTA))
    attack = AttackPlan(num_shadows=num_shadows, noise=noise) if num_shadows else None
    return AuditPlan(deletions=rates, seeds=tuple(range(num_seeds)), attack=attack)


def carry_out(run: RunDirectory, plan: AuditPlan, reporter: Reporter) -> dict[str, Any]:
    """Audit a run, add the figures to its report, and return them.

    Raises:
        ConfigError: If rows are missing or erased: an audit draws from all units.
    """
    problem = run.problem()
    store = ApproximatorStore.open(run.store_url)
    refuse_repaired(run, store)
    written = store.facts().rows_written
    if written < len(problem.data.units):
        raise ConfigError(
            f"{run.path} holds rows of {written} of {len(problem.data.units)} units, and an audit "
            "draws from all; audit before deleting, or a fresh run of the same configuration"
        )
    subject = Subject(problem, run.trajectory(), local_sum(store), class_terms_of(run))
    with exclusive(run), reporter.stage("audit", "parts") as progress:
        figures = run_audit(subject, plan, run.path / "audit", progress)
    if (run.path / "report.json").is_file():
        write_report(run.path, {**read_report(run.path), "audit": figures})
    return figures
