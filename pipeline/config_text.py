"""The text of a configuration: overrides, and errors that name the key."""

import re
from collections.abc import Sequence
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config_yaml import MAX_DEPTH, SHOWN, one_line, parse, short
from pipeline.errors import ConfigError
from pipeline.suggestions import nearest

# So many mistakes are named, and the rest counted.
NAMED = 10

# URLs: where they do not hold a password, the message quotes them.
_MAY_HOLD_SECRETS = ("storage.url", "data.path", "model.init")


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one value from a text of the form "section.key=value", in place.

    Raises:
        ConfigError: If it has another form, or names a value as if it were a section.
    """
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {short(override)} is not of the form section.key=value")
    if len(parts) > MAX_DEPTH:
        raise ConfigError(
            f"--set {short(override)}: expected at most {MAX_DEPTH} sections in a key"
        )
    here = values
    for part in parts[:-1]:
        child = here.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {short(override)}: {short(part)} is a value, not a section")
        here = child
    try:
        here[parts[-1]] = parse(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {short(override)}: {one_line(error)}") from error


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """Return what is wrong with values for `model`: each key with its reason, in one line."""
    messages = []
    for item in error.errors(include_url=False):
        place = [part for part in item["loc"] if isinstance(part, str | int)]
        key = ".".join(str(part) for part in place if not _is_type_tag(part))
        if item["type"] == "extra_forbidden":
            known = nearest(str(place[-1])[:SHOWN], _siblings(model, place))
            unknown = ".".join(
                [str(p) for p in place[:-1] if not _is_type_tag(p)] + [str(place[-1])]
            )
            messages.append(f"key {short(unknown)} {known}")
        elif item["type"] == "missing":
            messages.append(f"key {key!r} is missing; it has no default")
        else:
            message = str(item["msg"]).removeprefix("Value error, ")
            given = item.get("input")
            # A URL may hold a password; where it does not, the message quotes it.
            hidden = isinstance(given, dict) or key in _MAY_HOLD_SECRETS
            shown = "" if hidden else f" (found {short(given)})"
            messages.append(f"{key}: {message}{shown}" if key else message)
    found = list(dict.fromkeys(messages))
    more = [f"and {len(found) - NAMED} more"] if len(found) > NAMED else []
    return "; ".join(found[:NAMED] + more)


def _is_type_tag(part: str | int) -> bool:
    """Whether a part of an error's place names a branch of a union, not a key."""
    return isinstance(part, str) and bool(
        re.match(r"^(constrained-|literal\[|float|int$|function|transforms$)", part)
    )


def _siblings(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    for part in place[:-1]:
        if str(part) in model.model_fields:
            below = section_within(model.model_fields[str(part)].annotation)
            if below is None:
                break
            model = below
    return list(model.model_fields)


def section_within(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field's type is made of: itself, or null, or in a list; or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (section_within(argument) for argument in get_args(annotation))
    return next((section for section in found if section is not None), None)
