"""Configurations that are bad, hostile, or odd and yet good."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from pipeline.config import RunConfig
from tests.torture.case import Case, Maker, Workshop

HOSTILE: tuple[Any, ...] = (
    -1,
    0,
    2**31,
    2**63,
    2**64,
    10**20,
    10**300,
    -(10**20),
    0.5,
    -0.5,
    1e-300,
    5e-324,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    True,
    None,
    "",
    " ",
    "x" * 5000,
    "../x",
    "a/b",
    "/etc",
    "null",
    "é" * 50,
    "\u202e",
    "a\u2028b",
    "1e5",
    "yes",
    "2020-01-01",
    "auto",
    "s3://b/x.zarr",
    "s3://u:p@b/x",
    [],
    [[]],
    {},
    {"a": 1},
    [1e308],
    ["x"],
    [-1],
    [10**20],
    [10**6, 10**6],
    [None],
    "module:factory",
    ":",
    "os:getcwd",
    "builtins:print",
    "tests.examples.unusable:leaving",
)

TAGS = ("int", "float", "bool", "timestamp", "binary", "set", "python/name:os.system")


def base() -> dict[str, Any]:
    """A configuration of a run of milliseconds."""
    return {
        "name": "fuzz",
        "data": {"source": "digits", "num_train": 12},
        "training": {"epochs": 1, "batch_size": 4, "learning_rate": 0.1, "l2": 0.01},
        "recursion": {"chunk": 4},
    }


def keys(
    section: type[BaseModel] = RunConfig, above: tuple[str, ...] = ()
) -> list[tuple[str, ...]]:
    """Every key of the configuration, as the path to it; sections are keys, too."""
    found = []
    for name, field in section.model_fields.items():
        found.append((*above, name))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += keys(field.annotation, (*above, name))
    return found


def command(shop: Workshop, path: Path, *more: str) -> tuple[str, ...]:
    """A command that reads a configuration and all that it names, and computes next to nothing."""
    plan = ("plan", str(path), "--gpus", "1")
    train = ("train", str(path), "--out", str(shop.folder / "out"))
    return (*shop.pick(plan, train), *more)


def hostile_value(shop: Workshop) -> Case:
    path, value = shop.random.choice(keys()), shop.random.choice(HOSTILE)
    values = base()
    here = values
    for part in path[:-1]:
        here = here.setdefault(part, {})
    here[path[-1]] = value
    text = yaml.safe_dump(values, allow_unicode=shop.random.random() < 0.5)
    file = shop.write("config.yaml", text)
    return Case(f"{'.'.join(path)} is {value!r:.60}", command(shop, file), None)


def hostile_override(shop: Workshop) -> Case:
    path, value = shop.random.choice(keys()), shop.random.choice(HOSTILE)
    override = f"{'.'.join(path)}={yaml.safe_dump(value).removesuffix('...').strip()}"
    strange = (
        "",
        "=",
        "a",
        "a=b",
        "training=",
        "training.epochs=[[[[",
        "name=*a",
        "name=&a [*a]",
        f"name={'[' * 3000}",
        "training.epochs.x.y=3",
        "\udcff=3",
        "name=\udcff",
        "a" * 9000,
    )
    said = shop.pick(override, override, shop.random.choice(strange))
    file = shop.write("config.yaml", yaml.safe_dump(base()))
    return Case(f"--set {said!r:.80}", command(shop, file, "--set", said.replace("\0", "")), None)


def wrong_key(shop: Workshop) -> Case:
    values: Any = base()
    section = shop.pick(None, "data", "training", "model", "recursion")
    here = values if section is None else values.setdefault(section, {})
    name = shop.pick(
        "trainning", "bacth", "x" * 3000, "", " ", "float", "function", "литерал", "a.b", "__init__"
    )
    here[name] = shop.random.choice(HOSTILE)
    return Case(
        f"unknown key {name[:30]!r}",
        command(shop, shop.write("c.yaml", yaml.safe_dump(values))),
        False,
    )


def harmful_text(shop: Workshop) -> Case:
    depth, width = shop.random.randrange(40, 5000), shop.random.randrange(9, 40)
    bomb = "a0: &a0 [1]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]\n" for i in range(1, 12)
    )
    harms = (
        ("nested brackets", "x: " + "[" * depth),
        ("nested braces", "x: " + "{a: " * depth),
        ("nested lists", "x:\n  " + "- " * depth),
        ("nested keys", "? " * depth),
        ("an alias bomb", bomb),
        (
            "a merge bomb",
            bomb.replace("[1]", "{k: 1}")
            .replace(": &", ": &")
            .replace("[*", "{<<: [*")
            .replace("]\n", "]}\n"),
        ),
        ("an alias of itself", "x: &a {b: *a}"),
        ("a long number", f"seed: {'7' * depth}9{'7' * 5000}"),
        (
            "a tag",
            f"seed: !!{shop.random.choice(TAGS)} abc",
        ),
        ("a date", f"name: 20{depth % 90 + 10}-{depth % 20}-{depth % 40}"),
        ("the same key twice", "seed: 1\nseed: 2"),
        ("a key that is no text", f"{depth}: 1"),
        ("a long line", f"name: {'x' * 300_000}"),
        ("many values", f"name: [{'1,' * 30_000}]"),
        ("a tab", "\tname: x"),
        ("no YAML", "name: [1, {"),
        ("a control character", "name: \x07"),
        ("a directive", "%YAML 9.9\n---\nname: x"),
        ("an unknown alias", "name: *nowhere"),
        ("a sexagesimal number", f"seed: 1{':59' * 500}.5"),
        ("a complex key", "? {a: 1}\n: 2"),
    )
    about, text = shop.random.choice(harms)
    file = shop.write("config.yaml", yaml.safe_dump(base()) + text + "\n")
    return Case(about, command(shop, file), False)


def damaged_text(shop: Workshop) -> Case:
    content = yaml.safe_dump(base()).encode()
    for _ in range(shop.random.randrange(1, 4)):
        content = shop.damage(content)
    return Case("a damaged file", command(shop, shop.write("config.yaml", content)), None)


def no_configuration(shop: Workshop) -> Case:
    text = yaml.safe_dump(base())
    kind = shop.pick(
        "missing",
        "folder",
        "empty",
        "utf-16",
        "binary",
        "huge",
        "list",
        "number",
        "text",
        "below a file",
    )
    path = shop.folder / "config.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(shop.pick(300_000, 100 << 20))
    elif kind == "below a file":
        path = shop.write("file", text) / "config.yaml"
    elif kind != "missing":
        contents = {
            "empty": b"",
            "utf-16": text.encode("utf-16"),
            "list": b"- 1",
            "number": b"17",
            "text": b"x",
        }
        shop.write("config.yaml", contents.get(kind, shop.random.randbytes(5000)))
    return Case(f"no configuration: {kind}", command(shop, path), False)


def odd_model(shop: Workshop) -> Case:
    values = base()
    made = shop.pick(
        "compiled",
        "partly_compiled",
        "nothing",
        "without_arguments",
        "leaving",
        "a_constant",
        "absent",
    )
    name = shop.pick(
        f"tests.examples.unusable:{made}",
        "..:x",
        "nowhere:x",
        "os:path",
        "a b:c",
        ":x",
        "logistics",
        "",
    )
    values["model"] = {"name": name}
    return Case(
        f"model {name!r}", command(shop, shop.write("c.yaml", yaml.safe_dump(values))), False
    )


def odd_plan(shop: Workshop) -> Case:
    file = shop.write("config.yaml", yaml.safe_dump(base()))
    option = shop.pick("--gpus", "--tflops", "--gpu-memory", "--price", "--workers")
    value = shop.pick(
        "nan", "inf", "-inf", "-1", "1e308", "9" * 30, "9" * 5000, "", "x", "-0.0001", "1e-320"
    )
    gpus = () if option in ("--gpus", "--workers") else ("--gpus", "2")
    # A price of next to nothing is a price.
    good = (option, value) == ("--price", "1e-320")
    return Case(f"plan {option} {value[:20]}", ("plan", str(file), *gpus, option, value), good)


def odd_but_good(shop: Workshop) -> Case:
    text = yaml.safe_dump(base())
    odd = shop.pick(
        "# " + "x" * 10_000 + "\n" + text,
        text.replace("\n", "\r\n"),
        "\ufeff" + text,
        "---\n" + text + "...\n",
        text + "model: {hidden: [3, 3], name: mlp, activation: tanh}\n",
        text + "seed: 9223372036854775807\n",
        text + "retraining: &r {denominator: batch}\n",
        text + "certificate: {budget: {}}\n",
        text.replace("fuzz", "'Ünïcode 名 ../x'"),
        text.replace("0.1", "1e-1"),
        text.replace("0.01", "0"),
    )
    return Case("odd but good", command(shop, shop.write("config.yaml", odd)), True)


MAKERS: tuple[Maker, ...] = (
    hostile_value,
    hostile_value,
    hostile_value,
    hostile_override,
    wrong_key,
    harmful_text,
    harmful_text,
    damaged_text,
    no_configuration,
    odd_model,
    odd_plan,
    odd_but_good,
)
