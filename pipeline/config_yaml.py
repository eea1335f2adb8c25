"""YAML as a configuration needs it: plain values, text as keys, each key once, and bounded."""

import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError

# A configuration takes a few kB and three levels of nesting; each limit leaves room for a hundred
# times that, and keeps what reads it within a second and a few MB.
MAX_BYTES = 1 << 18
MAX_DEPTH = 32
MAX_VALUES = 10_000
MAX_ALIASES = 100
# Longer values are shortened where a message quotes them.
SHOWN = 80
LONGEST = 400
_PREFIX = "tag:yaml.org,2002:"


class _PlainLoader(yaml.SafeLoader):
    """YAML as a configuration needs it: plain values, text as keys, each key once, and bounded.

    Limits are checked while nodes are composed, which happens as the text is scanned: nothing large
    is ever built.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._num_values = 0
        self._num_aliases = 0
        # Of each finished node that has a name: how many values it stands for, and how deep they go.
        self._extent: dict[str, tuple[int, int]] = {}
        self._deepest = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self._count_alias(self._next_event())
            return super().compose_node(parent, index)
        event = self._next_event()
        if event.tag is not None:
            raise _refused(event, f"expected plain values, found the tag {event.tag}; remove it")
        self._depth += 1
        self._reach(event, self._depth)
        self._add(event, 1)
        before, deepest, self._deepest = self._num_values, self._deepest, self._depth
        node: Any = super().compose_node(parent, index)
        if event.anchor is not None:
            size, depth = self._num_values - before + 1, self._deepest - self._depth
            self._extent[event.anchor] = (size, depth)
        self._deepest = max(deepest, self._deepest)
        self._depth -= 1
        if node.tag == f"{_PREFIX}timestamp":
            raise _refused(
                event,
                f"{short(node.value)} reads as a date; expected plain numbers, text, lists and "
                "sections; put text in quotes",
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node: Any = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == f"{_PREFIX}merge":
                continue
            if key.tag != f"{_PREFIX}str":
                shown = short(key.value) if isinstance(key.value, str) else f"a {key.id}"
                raise _refused(key, f"expected text as key, found {shown}; put it in quotes")
            if key.value in seen:
                raise _refused(key, f"key {short(key.value)} stands twice; remove one of them")
            seen.add(key.value)
        return node

    def _next_event(self) -> Any:
        return self.peek_event()  # type: ignore[no-untyped-call]

    def _count_alias(self, event: Any) -> None:
        self._num_aliases += 1
        if self._num_aliases > MAX_ALIASES:
            raise _refused(event, f"expected at most {MAX_ALIASES} aliases; write the values out")
        if event.anchor in self.anchors and event.anchor not in self._extent:
            raise _refused(event, f"alias {short(event.anchor)} holds itself; write the values out")
        size, depth = self._extent.get(event.anchor, (1, 0))
        self._add(event, size)
        self._reach(event, self._depth + 1 + depth)

    def _add(self, event: Any, num_values: int) -> None:
        self._num_values += num_values
        if self._num_values > MAX_VALUES:
            raise _refused(event, f"expected at most {MAX_VALUES:,} values, aliases written out")

    def _reach(self, event: Any, depth: int) -> None:
        self._deepest = max(self._deepest, depth)
        if depth > MAX_DEPTH:
            raise _refused(event, f"expected at most {MAX_DEPTH} levels of nesting")


class _Loader(_PlainLoader):
    """The same with 1e-6 as a number: YAML 1.1 takes an exponent without a dot for text."""


def _refused(where: Any, reason: str) -> yaml.YAMLError:
    return yaml.YAMLError(f"{reason} (line {where.start_mark.line + 1})")


class _Dumper(yaml.SafeDumper):
    """Writes text that `_Loader` would take for a number in quotes, and equal values out in full."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        f"{_PREFIX}float",
        re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def read(path: Path) -> str:
    """Return the text of a configuration file.

    Raises:
        ConfigError: If it is missing, too large, or no text.
    """
    try:
        # No more than that is read: the file may be a device without an end.
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ConfigError(f"configuration file {path} does not exist") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"configuration file {path} cannot be read: {one_line(error)}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{path} is longer than {MAX_BYTES:,} bytes, too long for a configuration; give a YAML "
            "file such as those in configs/"
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file") from error


def parse(text: str) -> Any:
    """Return what YAML text says: plain numbers, text, lists and sections, within the limits above.

    Raises:
        yaml.YAMLError: If it is no YAML, or holds what no configuration needs.
    """
    return _load(text, _Loader)


def parse_recorded(text: str) -> Any:
    """Return what a run's `config.yaml` says: version 0.1 wrote a name such as 1e5 without quotes.

    Raises:
        yaml.YAMLError: As `parse`.
    """
    return _load(text, _PlainLoader)


def _load(text: str, loader: type[_PlainLoader]) -> Any:
    if len(text) > MAX_BYTES:
        raise yaml.YAMLError(f"expected at most {MAX_BYTES:,} characters, found {len(text):,}")
    try:
        return yaml.load(text, loader)
    except (ValueError, ArithmeticError) as error:
        # A number of thousands of digits, or one that no float holds.
        raise yaml.YAMLError(f"a value cannot be read: {one_line(error)}") from error


def write(values: dict[str, Any]) -> str:
    """Return YAML text that `parse` reads back to equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def one_line(error: BaseException) -> str:
    """Return an error's message without line breaks, and not longer than a person would read."""
    message = " ".join(str(error).split())
    return message if len(message) <= LONGEST else f"{message[:LONGEST]}..."


def short(value: object) -> str:
    """Return a value as Python writes it, shortened: it may be a whole file in one line."""
    try:
        shown = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 20]}... ({len(shown):,} characters)"
