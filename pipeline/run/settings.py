"""The settings that decide a run's results, as one canonical text that is bound to the run.

What decides approximators, sums, noise or the rule of correction must not change unseen between a
training and a deletion. Two texts are kept:

- `trajectory/settings.json`, covered by the trajectory's digest, holds what training fixes: `FIXED`
  sections, the thread count and a digest of the training data. A run of version 0.1.0 has none.
- The ledger's entry `bound` holds these, the `certificate` section and the limit on the error, from
  its first opening on.
  `unlearn configure` changes what may change, with an entry of its own.

Rule 1 of the text: sections in a fixed order, of each the keys whose value differs from the default,
as JSON with sorted keys; where files and stores lie is left out, since digests bind their content. A
key that a later version adds does not appear until it is set, also in a list of sections.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.config import RunConfig
from pipeline.errors import ConfigError, TrajectoryError
from storage.durable_write import write_atomically

SETTINGS = "settings.json"
RULE = 1
# What must agree for two configurations to share a run; the rest may change between commands.
FIXED = ("seed", "data", "model", "training", "retraining", "recursion", "storage")
# Where content lies, which is bound by digests of its own.
LOCATIONS = ("data.path", "model.init", "storage.url")
# What decides whether a deletion of some size is released.
GATE = ("evaluation.max_error", "evaluation.require_measured")
DATA_DIGEST = "data digest"
_THREADS = "cluster.cpus_per_worker"

Settings = dict[str, Any]


def fixed_settings(config: RunConfig) -> Settings:
    """Return what training fixes, by key: "training.epochs" and the like."""
    found = _changed_keys(config, FIXED)
    threads = config.cluster.cpus_per_worker
    if threads != type(config.cluster).model_fields["cpus_per_worker"].default:
        found[_THREADS] = threads
    return found


def deciding_settings(config: RunConfig) -> Settings:
    """Return everything that decides a release, by key: what is fixed, certificate, error limit."""
    found = fixed_settings(config) | _changed_keys(config, ("certificate",))
    gate = _changed_keys(config, ("evaluation",))
    return found | {key: gate[key] for key in GATE if key in gate}


def canonical_text(settings: Mapping[str, Any]) -> str:
    """Return the one text of settings, under the present rule."""
    body = {"rule": RULE, "settings": settings}
    return json.dumps(body, sort_keys=True, separators=(",", ":"))


def read_text(text: str, source: str) -> Settings:
    """Return the settings of a canonical text; `source` names it in messages.

    Raises:
        TrajectoryError: If it is none, or of a later rule.
    """
    try:
        body = json.loads(text)
        rule, settings = body["rule"], dict(body["settings"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrajectoryError(f"{source} is damaged ({error!r:.80}); restore it") from error
    if rule != RULE:
        raise TrajectoryError(
            f"{source} follows rule {rule!r:.20} of settings, this version knows {RULE}; open the run "
            "with the version that wrote it"
        )
    return settings


def write_settings(folder: Path, config: RunConfig, data_digest: str) -> None:
    """Write `settings.json` into a trajectory's folder, before its digest is made.

    Args:
        folder: Of the trajectory.
        config: As resolved.
        data_digest: Of the training data, hexadecimal.
    """
    settings = fixed_settings(config)
    content = canonical_text({**settings, DATA_DIGEST: data_digest})
    write_atomically(folder / SETTINGS, content.encode(), mode=0o600)


def read_settings(folder: Path) -> Settings | None:
    """Return what a trajectory's folder says that training fixed; None in runs of version 0.1.0."""
    path = folder / SETTINGS
    if not path.is_file():
        return None
    return read_text(path.read_text(encoding="utf-8", errors="replace"), str(path))


def recorded_data_digest(folder: Path) -> str | None:
    """Return the digest of the data that a training saw, if it is recorded."""
    settings = read_settings(folder)
    return None if settings is None else settings.get(DATA_DIGEST)


def first_change(bound: Mapping[str, Any], present: Mapping[str, Any]) -> str | None:
    """Return the first key on which two sets of settings differ, with both values, or None."""
    for key in sorted((bound.keys() | present.keys()) - {DATA_DIGEST}):
        if key not in bound or key not in present or bound[key] != present[key]:
            was, now = (
                f"{found[key]!r:.80}" if key in found else "the default"
                for found in (bound, present)
            )
            return f"{key} is {now}, and the run is bound to {was}"
    return None


def refuse_changed(path: Path, bound: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuse a configuration that no longer says what the run is bound to.

    Args:
        path: The file `config.yaml`.
        bound: What the run is bound to.
        present: The same settings as the file has them.

    Raises:
        ConfigError: The message names the file and the first key that differs.
    """
    change = first_change(bound, present)
    if change is not None:
        raise ConfigError(
            f"{path} was changed by hand: {change}; put it back, or change what may change with "
            "`unlearn configure`"
        )


def _changed_keys(config: RunConfig, sections: tuple[str, ...]) -> Settings:
    """Return the keys of sections that differ from their defaults, with values as JSON has them."""
    found: Settings = {}
    values = config.model_dump(mode="json")
    for section in sections:
        _collect(found, section, getattr(config, section), values[section])
    return {key: value for key, value in found.items() if key not in LOCATIONS}


def _collect(found: Settings, key: str, value: Any, dumped: Any) -> None:
    """Add what differs from its default; a plain key of the configuration itself is always added."""
    if not isinstance(value, BaseModel):
        found[key] = dumped
        return
    for name, field in type(value).model_fields.items():
        mine = getattr(value, name)
        if isinstance(mine, BaseModel):
            _collect(found, f"{key}.{name}", mine, dumped[name])
        elif field.is_required() or mine != field.get_default():
            found[f"{key}.{name}"] = _without_defaults(mine, dumped[name])


def _without_defaults(value: Any, dumped: Any) -> Any:
    """Return a value as JSON has it; of a list of sections, what differs from the defaults."""
    if not isinstance(value, tuple):
        return dumped
    return [
        each.model_dump(mode="json", exclude_defaults=True)
        if isinstance(each, BaseModel)
        else plain
        for each, plain in zip(value, dumped, strict=True)
    ]
