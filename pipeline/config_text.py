"""The text of a configuration: YAML in and out, overrides, and errors that name the key."""

import re
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import ConfigError
from pipeline.suggestions import nearest


class _Loader(yaml.SafeLoader):
    """YAML with 1e-6 as a number: YAML 1.1 takes an exponent without a dot for text."""


class _Dumper(yaml.SafeDumper):
    """Writes text that `_Loader` would take for a number in quotes."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def parse(text: str) -> Any:
    """Return what YAML text says.

    Raises:
        yaml.YAMLError: If it is no YAML.
    """
    return yaml.load(text, _Loader)


def write(values: dict[str, Any]) -> str:
    """Return YAML text that `parse` reads back to equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one value from a text of the form "section.key=value", in place.

    Raises:
        ConfigError: If it has another form, or names a value as if it were a section.
    """
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r} is not of the form section.key=value")
    here = values
    for part in parts[:-1]:
        child = here.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section")
        here = child
    try:
        here[parts[-1]] = parse(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """Return an error's message without line breaks."""
    return " ".join(str(error).split())


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """Return what is wrong with values for `model`: each key with its reason, in one line."""
    messages = []
    for item in error.errors(include_url=False):
        place = [part for part in item["loc"] if isinstance(part, str | int)]
        key = ".".join(str(part) for part in place if not _is_type_tag(part))
        if item["type"] == "extra_forbidden":
            messages.append(f"key {key!r} {nearest(str(place[-1]), _siblings(model, place))}")
        elif item["type"] == "missing":
            messages.append(f"key {key!r} is missing; it has no default")
        else:
            message = str(item["msg"]).removeprefix("Value error, ")
            given = item.get("input")
            # A URL may hold a password; where it does not, the message quotes it.
            hidden = isinstance(given, dict) or key == "storage.url"
            shown = "" if hidden else f" (found {given!r})"
            messages.append(f"{key}: {message}{shown}" if key else message)
    return "; ".join(dict.fromkeys(messages))


def _is_type_tag(part: str | int) -> bool:
    """Whether a part of an error's place names a branch of a union, not a key."""
    return isinstance(part, str) and bool(
        re.match(r"^(constrained-|literal\[|float|int$|function)", part)
    )


def _siblings(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    for part in place[:-1]:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return list(model.model_fields)
