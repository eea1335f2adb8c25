"""The page of configuration keys, docs/configuration.md, made from the code.

    python -m pipeline.config_page > docs/configuration.md

A key's meaning is the text that stands behind its field in `pipeline/config.py`, or in the files that
it gathers. What follows `Unit:` at its end goes to a column of its own. Allowed values and bounds come
from the field's type.
"""

import ast
import inspect
import itertools
import json
import sys
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo

from pipeline.config import RunConfig
from pipeline.config_text import section_within
from pipeline.schema import AbsolutePath, Section

COMMAND = "python -m pipeline.config_page > docs/configuration.md"
_INTRODUCTION = f"""# Configuration

A run is configured by one YAML file (`configs/` has examples), and single keys are set by
`--set section.key=value`. Keys that are left out take their default; unknown keys are refused with
the nearest known one. *null* stands for "not given". A share is a fraction between 0 and 1.

This page is made from `pipeline/config.py` by `{COMMAND}`.
"""
_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false"}
_BOUNDS = (
    (Ge, "ge", "at least"),
    (Gt, "gt", "above"),
    (Le, "le", "at most"),
    (Lt, "lt", "below"),
    (MinLen, "min_length", "of length at least"),
    (MaxLen, "max_length", "of length at most"),
)


def page() -> str:
    """Return the text of docs/configuration.md."""
    tables = [_table("", RunConfig), *(_table(*found) for found in sections(RunConfig))]
    return "\n".join([_INTRODUCTION, *tables])


def sections(model: type[Section], prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Yield each section below `model` with the key that leads to it, those in lists as well."""
    for key, field in model.model_fields.items():
        section = section_within(field.annotation)
        if section is not None:
            assert issubclass(section, Section)
            name = f"{prefix}{key}[]" if _in_list(field.annotation) else prefix + key
            yield name, section
            yield from sections(section, f"{name}.")


def _is_section(annotation: Any) -> TypeGuard[type[Section]]:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _in_list(annotation: Any) -> bool:
    return get_origin(annotation) is tuple or any(map(_in_list, get_args(annotation)))


def meanings(model: type[Section]) -> dict[str, str]:
    """Return the text behind each field of a section, as one line."""
    body = typing.cast(ast.ClassDef, ast.parse(inspect.getsource(model)).body[0]).body
    found = {}
    for statement, behind in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(behind, ast.Expr)
            and isinstance(behind.value, ast.Constant)
        ):
            found[statement.target.id] = " ".join(str(behind.value.value).split())
    return found


def _table(key: str, model: type[Section]) -> str:
    # What may be null, or comes in a list, has a line and a heading.
    below = {name for name, field in model.model_fields.items() if _is_section(field.annotation)}
    said, hints = meanings(model), typing.get_type_hints(model, include_extras=True)
    lines = [
        f"## {key or 'The run'}\n\n{inspect.getdoc(model)}\n",
        "| key | values | default | unit | meaning |",
        "|---|---|---|---|---|",
    ]
    for name, field in model.model_fields.items():
        if name not in below:
            full = f"{key}.{name}" if key else name
            meaning, _, unit = said.get(name, "").partition(" Unit: ")
            cells = (f"`{full}`", type_text(hints[name]), _default(field), unit.strip("."), meaning)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def type_text(annotation: Any) -> str:
    """Return a type in words: allowed values, bounds, and what null is for.

    >>> type_text(tuple[Annotated[int, Ge(1)], ...] | Literal["auto"])
    'list, each integer (at least 1), or `auto`'
    """
    if annotation is AbsolutePath:
        return "path or URL"
    if annotation is type(None):
        return "null"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0]) + _bounds(arguments[1:])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return ", or ".join(type_text(argument) for argument in arguments)
    if origin is tuple:
        if _is_section(arguments[0]):
            return "list of mappings"
        return f"list, each {type_text(arguments[0])}"
    return "mapping" if _is_section(annotation) else _NAMES[annotation]


def _bounds(metadata: tuple[Any, ...]) -> str:
    """Return the bounds that a field's metadata state, in brackets; nothing if they state none."""
    flat = [
        m for item in metadata for m in (item.metadata if isinstance(item, FieldInfo) else [item])
    ]
    words = [
        f"{word} {getattr(bound, attribute):,}"
        for kind, attribute, word in _BOUNDS
        for bound in flat
        if isinstance(bound, kind)
    ]
    return f" ({', '.join(words)})" if words else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "none: must be given"
    value = field.get_default(call_default_factory=True)
    # JSON writes each value on one line and as YAML reads it; text goes without its quotes.
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


if __name__ == "__main__":
    sys.stdout.write(page())
