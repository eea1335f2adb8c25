"""Which generation of a run is trained from the start, without the deleted: a file that workers read.

`internal/retraining.json` names the generation and a digest of its schedule. The approximators of such
a generation start at zero; those of every other later one start where a repair does. The file stays
once the retraining is over.
"""

# T steps

import json

from blake3 import blake3

from pipeline.run.directory import RunDirectory
from pipeline.run.schedule import Schedule
from storage.durable_write import write_atomically


def mark_retraining(run: RunDirectory, generation: int, schedule: Schedule) -> None:
    """Write which generation is trained from the start; before anything of it is."""
    run.retraining_path.parent.mkdir(mode=0o700, exist_ok=True)
    content = json.dumps({"generation": generation, "schedule": _digest(schedule)})
    write_atomically(run.retraining_path, content.encode(), mode=0o600)


def is_retraining(run: RunDirectory, generation: int, schedule: Schedule) -> bool:
    """Whether a generation is, or was, trained from the start through this schedule."""
    try:
        found = json.loads(run.retraining_path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return bool(found == {"generation": generation, "schedule": _digest(schedule)})


def _digest(schedule: Schedule) -> str:
    hasher = blake3(json.dumps(schedule.learning_rates).encode())
    for positions in schedule.sample_ids:
        hasher.update(json.dumps(positions.tolist()).encode())
    return hasher.hexdigest()
