"""Changing a run's mutable settings, with an entry in the ledger's chain.

What training fixed cannot change. The privacy budget, `certificate.kind: none`, the `cluster` and the
`evaluation` sections can.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

from pipeline.config import RunConfig
from pipeline.config_text import apply_override
from pipeline.deletion.delete import deletion_context, refuse_without_rows
from pipeline.deletion.files import ReleasePaths
from pipeline.errors import ConfigError
from pipeline.run.directory import RunDirectory
from pipeline.run.settings import canonical_text, deciding_settings, first_change, read_text
from storage.ledger import Ledger
from storage.pseudonym import load_key
from storage.run_lock import RunLock
from storage.store import ApproximatorStore

CHANGEABLE = ("certificate.budget", "certificate.kind", "cluster", "evaluation")


def configure(run: RunDirectory, overrides: Sequence[str]) -> RunDirectory:
    """Change settings of a run; return it as it is then. Repeat a call that was interrupted.

    Args:
        run: The run.
        overrides: Texts of the form "section.key=value".

    Raises:
        ConfigError: If a key is not to be changed, or the values do not fit together.
        LedgerError: If the ledger was changed, or is of another run or key.
    """
    changed = replace(run, config=_changed(run, overrides))
    if changed.config == run.config and not run.ledger_path.exists():
        return run
    with RunLock(run.ledger_lock_path):
        if run.ledger_path.exists():
            _record(run, changed)
        changed.write_config(run.environment())
    return changed


def _changed(run: RunDirectory, overrides: Sequence[str]) -> RunConfig:
    values = run.config.model_dump(mode="json")
    for override in overrides:
        key = override.partition("=")[0]
        if not any(key == known or key.startswith(f"{known}.") for known in CHANGEABLE):
            raise ConfigError(
                f"{key!r} was fixed when {run.path} was trained; what may change is "
                f"{', '.join(CHANGEABLE)}: use a fresh run of another configuration"
            )
        apply_override(values, override)
    config = RunConfig.from_values(values, "the changed configuration")
    if config.cluster.cpus_per_worker != run.config.cluster.cpus_per_worker:
        raise ConfigError("cluster.cpus_per_worker fixes the last bits of rows; it cannot change")
    kind = config.certificate.kind
    if kind not in ("none", run.config.certificate.kind):
        raise ConfigError(
            f"certificate.kind {kind} is declared before the first request; it can only become none"
        )
    return config


def _record(run: RunDirectory, changed: RunDirectory) -> None:
    """Write the change into the ledger, unless an interrupted call has done so."""
    before, after = deciding_settings(run.config), deciding_settings(changed.config)
    refuse_without_rows(run)
    store = ApproximatorStore.open(run.store_url)
    context = deletion_context(changed, store)
    paths, key = ReleasePaths(run.path), load_key(run.path)
    with closing(
        Ledger(paths.ledger, context.run_digest, key.check_value(), seal=key.seal)
    ) as ledger:
        text = ledger.settings()
        bound = before if text is None else read_text(text, str(paths.ledger))
        if first_change(bound, before) is not None and first_change(bound, after) is not None:
            change = first_change(bound, before)
            raise ConfigError(
                f"{run.path / 'config.yaml'} was changed by hand: {change}; put it back"
            )
        if first_change(bound, after) is not None:
            ledger.configure(canonical_text(after))
        ledger.redeclare(context.generation, context.declared_digest())
