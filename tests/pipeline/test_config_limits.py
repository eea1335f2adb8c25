"""Configurations that no machine should carry out: one line that names the key and the reason."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline import RunConfig
from pipeline.config import ModelConfig
from pipeline.config_yaml import MAX_BYTES, MAX_DEPTH, parse, parse_recorded, write
from pipeline.errors import ConfigError, ModelError
from pipeline.models.registry import Shape, build
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem

TRAINING: dict[str, Any] = {"epochs": 2, "batch_size": 4, "learning_rate": 0.1}
BASE = "training: {epochs: 2, batch_size: 4, learning_rate: 0.1}\n"

BOMB = "a0: &a0 [1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9)
)
TEXTS = {
    "a date": ("name: 2020-01-01\n", "reads as a date"),
    "no date": ("name: 2020-13-45\n", "reads as a date"),
    "a tag": ("seed: !!int abc\n", "tag tag:yaml.org,2002:int; remove it"),
    "a tag of a truth": ("seed: !!bool abc\n", "remove it"),
    "a tag of a date": ("seed: !!timestamp abc\n", "remove it"),
    "a long number": (f"seed: {'9' * 5000}\n", "cannot be read"),
    "a long hexadecimal number": (f"seed: 0x{'f' * 9000}\n", "seed|4300 digits"),
    "a large sexagesimal number": (f"seed: 1{':59' * 400}.5\n", "cannot be read|finite"),
    "brackets": (f"name: {'[' * 3000}{']' * 3000}\n", f"at most {MAX_DEPTH} levels"),
    "braces": ("name: " + "{a: " * 3000 + "}" * 3000, f"at most {MAX_DEPTH} levels"),
    "dashes": ("name:\n  " + "- " * 3000 + "x\n", f"at most {MAX_DEPTH} levels"),
    "questions": ("? " * 3000 + "x\n", f"at most {MAX_DEPTH} levels"),
    "a bomb": (BOMB, "values, aliases written out"),
    "merges": (MERGES, "values, aliases written out"),
    "aliases": ("a: &a x\nb: [" + "*a, " * 101 + "]\n", "at most 100 aliases"),
    "itself": ("name: &a [*a]\n", "holds itself"),
    "a deep alias": (
        "a: &a " + "[" * 20 + "]" * 20 + "\nb: " + "[" * 20 + "*a" + "]" * 20 + "\n",
        f"at most {MAX_DEPTH} levels",
    ),
    "twice": ("seed: 1\nname: x\nseed: 2\n", r"key 'seed' stands twice.*line 4"),
    "twice inside": ("data: {source: digits, 'source': wine}\n", "key 'source' stands twice"),
    "a number as key": ("7: 8\n", "text as key, found '7'"),
    "a truth as key": ("on: 8\n", "text as key, found 'on'"),
    "a list as key": ("? [a, b]\n: 8\n", "text as key, found a sequence"),
    "many values": (f"name: [{'1, ' * 20_000}]\n", "at most 10,000 values"),
    "a long text": (f"name: {'x' * MAX_BYTES}\n", "longer than 262,144 bytes"),
    "two documents": ("---\nname: x\n---\nname: y\n", "YAML"),
    "a control character": ("name: a\x07b\n", "YAML"),
    "a value of its own kind": ("name: =\n", "YAML"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_text_that_would_harm_its_reader_is_refused_in_one_short_line(
    kind: str, tmp_path: Path
) -> None:
    text, reason = TEXTS[kind]
    path = tmp_path / "config.yaml"
    path.write_text(BASE + text)
    with pytest.raises(ConfigError, match=reason) as caught:
        RunConfig.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 800
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=reason):
        RunDirectory.open(tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "name=" + "[" * 3000,
        "name=2020-13-45",
        "name=!!int abc",
        "a" * 5000,
        ".".join("a" * 3000) + "=1",
    ],
)
def test_overrides_have_the_same_limits(override: str) -> None:
    with pytest.raises(ConfigError, match="--set") as caught:
        RunConfig.from_text(BASE, "text", [override])
    assert len(str(caught.value)) < 800
    assert "\n" not in str(caught.value)


def test_files_that_are_no_configuration_are_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(100 << 20)
    for path, reason in (
        (tmp_path / "large.yaml", "too long for a configuration"),
        (Path("/dev/zero"), "too long for a configuration"),
        (tmp_path / ("x" * 300), "cannot be read"),
        (Path("a\0b"), "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=reason):
            RunConfig.load(path)


def test_aliases_within_reason_are_values() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n"
    values = {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": [{"x": 1, "y": 2}] * 2}
    assert parse(text) == values
    assert parse(write(values)) == values
    # A mapping that was merged before it was built holds a key twice, and rightly so.
    nested = "s: {t: {base: &b {<<: {a: 1}, a: 2}}}\nx: {<<: *b}\n"
    assert parse(nested) == {"s": {"t": {"base": {"a": 2}}}, "x": {"a": 2}}


def test_a_name_that_version_1_wrote_without_quotes_stays_text() -> None:
    assert parse_recorded(yaml.safe_dump({"name": "1e5"})) == {"name": "1e5"}
    assert parse_recorded(write({"name": "1e5", "l2": 1e-6})) == {"name": "1e5", "l2": 1e-6}


BEYOND: list[tuple[str, str, Any, str]] = [
    ("cluster", "cpus_per_worker", 100_000, "at most 256: a worker starts a thread for each"),
    ("cluster", "num_workers", 10**9, "at most 10,000"),
    ("cluster", "gpus_per_worker", 1e9, "at most 64"),
    ("cluster", "grow_seconds", 1e300, "at most 604,800"),
    ("cluster", "save_every", 10**20, "at most"),
    ("training", "epochs", 10**20, "at most 1,000,000: the order of all samples"),
    ("training", "batch_size", 10**12, "at most 100,000,000"),
    ("training", "learning_rate", 5e-324, "at least 1e-30: float32"),
    ("training", "learning_rate", 1e308, r"at most 1e\+30: float32"),
    ("training", "l2", 1e308, r"at most 1e\+30"),
    ("training", "clip_norm", 1e-300, "at least 1e-30"),
    ("model", "hidden", [10**11], "at most 1,000,000: a unit's approximator"),
    ("model", "hidden", [10**6, 10**6], "1,000,000,000,000 weights between its layers"),
    ("model", "hidden", [1] * 101, "at most 100 items"),
    ("model", "head_hidden", [10**6, 10**6], "head_hidden makes"),
    ("data", "image_size", 100_000, "at most 256: all enlarged images"),
    ("data", "num_train", 10**20, "at most 1,000,000,000"),
    ("recursion", "chunk", 10**9, "at most 100,000"),
    ("recursion", "checkpoint_every", 10**20, "at most"),
    ("storage", "block", 10**20, "at most 1,000,000,000"),
    ("certificate", "audit_sets", 10**9, "at most 10,000: each is a whole retraining"),
    ("certificate", "max_units", 10**20, "at most 1,000,000,000"),
    ("evaluation", "repeats", 10**9, "at most 10,000"),
    ("evaluation", "deletions", [10**20], "at most 1,000,000,000"),
    ("evaluation", "deletions", [1] * 10_001, "at most 10000 items"),
]


@pytest.mark.parametrize(("section", "key", "value", "reason"), BEYOND)
def test_a_number_beyond_its_bound_is_refused_with_the_reason(
    section: str, key: str, value: Any, reason: str
) -> None:
    values: dict[str, Any] = {"training": TRAINING}
    values[section] = values.get(section, {}) | {key: value}
    with pytest.raises(ConfigError, match=reason) as caught:
        RunConfig.from_values(values)
    assert f"{section}.{key}" in str(caught.value)
    assert len(str(caught.value)) < 800


def test_names_are_short() -> None:
    with pytest.raises(ConfigError, match=r"name: .*at most 100"):
        RunConfig.from_values({"name": "x" * 101, "training": TRAINING})


def test_many_mistakes_are_counted() -> None:
    wrong = {f"key{i}": i for i in range(1000)}
    with pytest.raises(ConfigError, match="and 990 more") as caught:
        RunConfig.from_values({"training": TRAINING, **wrong})
    assert "key11" not in str(caught.value)


def test_what_only_the_data_decide_is_measured_when_they_are_there() -> None:
    long = {"epochs": 10**6, "batch_size": 1437, "learning_rate": 0.1}
    config = RunConfig.from_values({"data": {"source": "digits"}, "training": long})
    with pytest.raises(ConfigError, match="expected at most 1,000,000 steps and 250,000,000"):
        Problem.of(config)
    wide = ModelConfig(name="mlp", hidden=(10**6,))
    with pytest.raises(ModelError, match=r"65,\d+,\d+ weights|weights for inputs of shape"):
        build(wide, Shape((3, 64, 64), 10), 0)
    with pytest.raises(ModelError, match="10,000,000,000 classes"):
        build(ModelConfig(name="logistic"), Shape((8,), 10**10), 0)


def test_counting_weights_changes_no_draw() -> None:
    config, shape = ModelConfig(name="mlp", hidden=(5,)), Shape((4,), 3)
    first, second = build(config, shape, 7), build(config, shape, 7)
    torch.manual_seed(7)
    drawn = torch.nn.Linear(4, 5).weight
    assert torch.equal(next(first.parameters()), drawn)
    assert torch.equal(next(second.parameters()), drawn)


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("compiled", "the model is compiled by torch.jit"),
        ("partly_compiled", "0 is compiled by torch.jit"),
        ("unfinished", "fails: KeyError"),
        ("without_arguments", "fails: TypeError"),
        ("nothing", "returned a NoneType"),
        ("a_constant", "has no callable 'a_constant'"),
        ("leaving", "fails: SystemExit"),
    ],
)
def test_a_factory_that_makes_no_usable_model_is_refused(factory: str, reason: str) -> None:
    name = f"tests.examples.{'mixer' if factory == 'unfinished' else 'unusable'}:{factory}"
    with pytest.raises((ModelError, ConfigError), match=reason):
        build(ModelConfig(name=name), Shape((1, 8, 8), 10), 0)


@pytest.mark.parametrize(
    "name", ["", ":", "a:", ":b", ".:x", "..a:b", "a b:c", "os:path:x", "os:sep", "\0:x"]
)
def test_a_name_of_no_factory_is_refused(name: str) -> None:  # fmt: skip
    with pytest.raises((ModelError, ConfigError), match=r"model\.name"):
        build(ModelConfig(name=name), Shape((1, 8, 8), 10), 0)
