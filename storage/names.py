"""Valid names of units and stores."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Integral
from pathlib import Path
from urllib.parse import urlsplit

MAX_UNIT_BYTES = 1024
_UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f\\ud800-\\udfff]")


def shown(key: str) -> str:
    """A key or message as printable text in one line, whatever characters a stranger put in it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in key)


def unit_name(unit: object) -> str:
    """The text that names a unit; a whole number stands for its digits.

    Raises:
        TypeError: it is neither; the message says what to write.
    """
    if isinstance(unit, str):
        return unit
    # numpy's integers are no `int`; `bool` is one, and no unit is called True by intent.
    if isinstance(unit, Integral) and not isinstance(unit, bool):
        return str(int(unit))
    advice = ""
    if isinstance(unit, bytes | bytearray):
        advice = f"; for text write {unit.decode(errors='replace')!r:.80}"
    raise TypeError(
        f"a unit is named by text or a whole number, found {type(unit).__name__} {unit!r:.80}{advice}"
    )


def whole_numbers(values: Iterable[object]) -> list[int]:
    """Positions, weights or counts as ints.

    Raises:
        TypeError: one is no whole number; nothing is rounded.
    """
    numbers = []
    for value in values:
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"expected whole numbers, found {type(value).__name__} {value!r:.80}")
        numbers.append(int(value))
    return numbers


def unit_names(units: Iterable[object]) -> list[str]:
    """The names of several units, in their order.

    Raises:
        TypeError: `units` is one text, bytes, a mapping or a set, or a unit is named by none of
            text and whole number.
    """
    _require_list(units)
    return [unit_name(unit) for unit in units]


def _require_list(units: Iterable[object]) -> None:
    if isinstance(units, str | bytes | bytearray | Mapping | Set):
        raise TypeError(
            f"expected a list of units, found {type(units).__name__} {units!r:.80}; for one unit "
            'write ["its name"], for several list them in an order'
        )


def check_unit_names(units: Sequence[str]) -> None:
    """Refuse names that could be mistaken for another, or for a path.

    Raises:
        ValueError: a name is empty, repeated, not text, longer than 1,024 bytes, or holds control
            characters or `../`.
        TypeError: `units` is one text, bytes, a mapping or a set.
    """
    _require_list(units)
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


SUFFIX = ".zarr"
SCHEMES = ("file", "s3", "gs", "az", "abfs", "abfss")


def stem_of(url: str | Path) -> str:
    """Return the name that a path or URL gives a store, without `.zarr`.

    Args:
        url: a local path, `file://...`, or another URL, ending in `<stem>.zarr`.

    Raises:
        ValueError: the name does not end so, the scheme is none of ours, or the URL carries
            credentials; the message does not repeat those.
    """
    text = str(url).rstrip("/")
    parts = urlsplit(text) if "://" in text else None
    if parts and (parts.username or parts.password or parts.query or parts.fragment):
        raise ValueError(
            "credentials or parameters in a store's URL would be copied into config.yaml; give "
            "them through the environment (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    if parts and parts.scheme not in SCHEMES:
        raise ValueError(f"expected a URL of {', '.join(SCHEMES)}; found {parts.scheme}://")
    stem = text.rsplit("/", 1)[-1].removesuffix(SUFFIX)
    if not text.endswith(SUFFIX) or not re.fullmatch(r"[\w.-]*\w", stem):
        raise ValueError(
            "expected the name of a store, letters, digits, '_', '-' and '.', then .zarr, such as "
            f"s3://bucket/digits.zarr; found {text!r:.200}"
        )
    return stem
