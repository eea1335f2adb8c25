"""Names of units: what may stand in a manifest and be asked for."""

import re
from collections import Counter
from collections.abc import Sequence

MAX_UNIT_BYTES = 1024
_UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f\\ud800-\\udfff]")


def check_unit_names(units: Sequence[str]) -> None:
    """Refuse names that could be mistaken for another, or for a path.

    Raises:
        ValueError: a name is empty, repeated, not text, longer than 1,024 bytes, or holds control
            characters or `../`.
    """
    for position, unit in enumerate(units):
        if not isinstance(unit, str) or not unit:
            raise ValueError(f"unit {position} must be a non-empty text, found {unit!r:.80}")
        if _UNPRINTABLE.search(unit):
            raise ValueError(f"unit {position} holds a control character: {unit!r:.80}")
        if len(unit.encode()) > MAX_UNIT_BYTES:
            raise ValueError(
                f"unit {position} has {len(unit.encode())} bytes, at most {MAX_UNIT_BYTES} are "
                f"taken: {unit!r:.80}"
            )
        if ".." in unit.replace("\\", "/").split("/"):
            raise ValueError(f"unit {position} looks like a path out of a folder: {unit!r:.80}")
    if len(set(units)) < len(units):
        twice = next(unit for unit, count in Counter(units).items() if count > 1)
        raise ValueError(f"unit names must differ; {twice!r:.80} comes twice")
