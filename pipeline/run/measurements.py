"""Time and cost of a run's stages, kept with the run for later reports."""

import json
from typing import Any

from pipeline.errors import ConfigError
from pipeline.run.directory import RunDirectory
from storage.durable_write import write_atomically

_NAME = "measurements.json"


def read_measurements(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """Return the measurements of the finished stages, by stage.

    Raises:
        ConfigError: If the file is damaged.
    """
    path = run.path / _NAME
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(stage, dict) for stage in values.values()):
            raise ValueError("it holds no stages")
    except (ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path} is damaged: {error}; remove it (only timings are lost)"
        ) from error
    return dict(values)


def record_measurements(run: RunDirectory, stage: str, values: dict[str, Any]) -> None:
    """Keep a stage's measurements, replacing those of an earlier time."""
    known = read_measurements(run)
    known[stage] = values
    write_atomically(run.path / _NAME, json.dumps(known, indent=2).encode())
