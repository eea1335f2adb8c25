"""Configurations: read strictly, overridden, written and read again."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline import RunConfig
from pipeline.errors import ConfigError
from pipeline.run.settings import fixed_settings

TRAINING: dict[str, Any] = {"epochs": 2, "batch_size": 4, "learning_rate": 0.1}


def config(**sections: Any) -> RunConfig:
    return RunConfig.from_values({"training": TRAINING, **sections})


def refused(reason: str, **sections: Any) -> str:
    """Check that the sections are refused in one line that matches `reason`."""
    with pytest.raises(ConfigError, match=reason) as caught:
        config(**sections)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_those_of_the_documentation() -> None:
    found = config()
    assert found.seed == 42
    assert found.retraining.denominator == "remaining"
    assert found.retraining.l2_share == "step"
    assert found.recursion.own_rows == "left-out"
    assert found.recursion.engine == "hvp"
    assert found.training.learning_rate_decay == 1.0
    assert found.training.shuffle == "each-epoch"
    assert found.data.test_fraction == 0.2
    assert found.evaluation.deletions == (1, 20, 0.2)
    assert found.certificate.kind == "none"


@pytest.mark.parametrize(
    "sections, key, meant",
    [
        ({"trainning": {}}, "trainning", "training"),
        ({"training": {**TRAINING, "batchsize": 4}}, "training.batchsize", "batch_size"),
        ({"training": {**TRAINING, "momentun": 0.9}}, "training.momentun", "momentum"),
        ({"data": {"sourse": "digits"}}, "data.sourse", "source"),
        ({"recursion": {"own_row": "included"}}, "recursion.own_row", "own_rows"),
        ({"certificate": {"budget": {"epsilom": 1}}}, "certificate.budget.epsilom", "epsilon"),
        ({"data": {"augment": [{"crop": {}}, {"flop": {}}]}}, "data.augment.1.flop", "flip"),
        ({"data": {"augment": [{"crop": {"pading": 1}}]}}, "data.augment.0.crop.pading", "padding"),
    ],
)
def test_an_unknown_key_names_the_nearest(sections: Any, key: str, meant: str) -> None:
    message = refused(f"'{key}'", **sections)
    assert f"'{meant}'" in message


def test_an_unknown_key_near_nothing_lists_what_is_known() -> None:
    message = refused("'retraining.zzzz'", retraining={"zzzz": 1})
    assert "denominator" in message
    assert "l2_share" in message


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"training\.epochs"):
        RunConfig.from_values({"training": {"batch_size": 4, "learning_rate": 0.1}})
    with pytest.raises(ConfigError, match="training"):
        RunConfig.from_values({})


@pytest.mark.parametrize(
    "key, value",
    [
        ("clip_norm", 0),
        ("clip_norm", -1),
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", "2"),
        ("epochs", True),
        ("batch_size", 0),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", "fast"),
        ("learning_rate_decay", 0),
        ("learning_rate_decay", 1.1),
        ("l2", -1e-9),
        ("momentum", 1),
        ("momentum", -0.1),
        ("nesterov", "yes"),
        ("shuffle", "never"),
    ],
)
def test_a_value_out_of_range_names_its_key(key: str, value: Any) -> None:
    refused(rf"training\.{key}", training={**TRAINING, key: value})


@pytest.mark.parametrize(
    "section, key, value",
    [
        ("data", "test_fraction", 0),
        ("data", "test_fraction", 1),
        ("data", "num_train", 0),
        ("data", "unit", "household"),
        ("model", "hidden", [0]),
        ("model", "activation", "sine"),
        ("retraining", "denominator", "both"),
        ("recursion", "chunk", 1),
        ("recursion", "dtype", "float16"),
        ("recursion", "engine", "exact"),
        ("recursion", "expected_fraction", 1),
        ("recursion", "relu_beta", 0),
        ("recursion", "checkpoint_every", 0),
        ("evaluation", "deletions", [0]),
        ("evaluation", "deletions", [1.5]),
        ("evaluation", "repeats", 0),
    ],
)
def test_every_section_checks_its_values(section: str, key: str, value: Any) -> None:
    message = refused(rf"{section}\.{key}", **{section: {key: value}})
    assert "constrained" not in message
    assert "validation error" not in message


@pytest.mark.parametrize(
    "key, reason",
    [
        ("amsgrad", "running maximum"),
        ("dropout", "replayed"),
        ("augmentation", r"data\.augment"),
    ],
)
def test_what_the_recursion_cannot_follow_is_refused_with_the_reason(key: str, reason: str) -> None:
    refused(rf"training\.{key}.*{reason}", training={**TRAINING, key: "adam"})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"loss": "huberr"}, r"training\.loss 'huberr' is unknown; did you mean 'huber'"),
        ({"loss": "hinge"}, r"name your own as \"module:function\""),
        ({"loss": "huber", "class_weights": [1, 2]}, "class_weights needs .* found huber"),
        ({"loss": "poisson", "label_smoothing": 0.1}, "label_smoothing needs .* found poisson"),
        ({"huber_delta": 2}, "huber_delta needs training.loss huber, found cross-entropy"),
        ({"class_weights": [1, 0]}, r"class_weights"),
    ],
)
def test_settings_of_another_loss_are_refused(settings: dict[str, Any], message: str) -> None:
    refused(message, training={**TRAINING, **settings})


def test_settings_that_contradict_each_other_are_refused() -> None:
    refused("expected_fraction.*denominator: batch", recursion={"expected_fraction": 0.1})
    refused(r"training\.nesterov.*momentum", training={**TRAINING, "nesterov": True})
    # The leave-one-out engine makes no Hessian products: these would be ignored without a word.
    alone = {"engine": "leave-one-out"}
    refused("own_rows.*leave-one-out", recursion={**alone, "own_rows": "included"})
    batch = {"denominator": "batch"}
    fraction = {**alone, "expected_fraction": 0.1}
    refused("expected_fraction.*leave-one-out", recursion=fraction, retraining=batch)


AUGMENT = {
    "a word": ("flip", r"data\.augment: expected a list.*module:function.*'flip'"),
    "no list": ({"flip": {}}, r"data\.augment: expected a list.*module:function"),
    "a word in the list": (["flip"], r"data\.augment\.0: expected a mapping with one name.*'flip'"),
    "two names": ([{"flip": {}, "noise": {}}], r"augment\.0: expected one name.*flip, noise"),
    "no name": ([{}], r"augment\.0: expected one name.*none"),
    "a missing key": ([{"crop": None}], r"data\.augment\.0\.crop\.padding' is missing"),
    "nothing": ([{"jitter": {"hue": 0}}], r"augment\.0\.jitter: expected one of brightness"),
    "too much": ([{"jitter": {"hue": 0.6}}], r"data\.augment\.0\.jitter\.hue: .*0\.5"),
    "never": ([{"flip": {"probability": 0}}], r"augment\.0\.flip\.probability"),
}


@pytest.mark.parametrize("name", AUGMENT)
def test_augmentation_in_another_form_is_refused(name: str) -> None:
    value, reason = AUGMENT[name]
    refused(reason, data={"augment": value})


def test_augmentation_is_a_list_of_names_with_their_keys() -> None:
    text = "training: {epochs: 2, batch_size: 4, learning_rate: 0.1}\n"
    text += "data:\n  augment:\n    - flip:\n    - crop: {padding: 2}\n"
    found = RunConfig.from_text(text, "text")
    assert RunConfig.from_text(found.to_yaml(), "text") == found
    written = found.model_dump(mode="json")["data"]["augment"]
    assert written == [{"flip": {"probability": 0.5}}, {"crop": {"padding": 2}}]
    # The text that is bound to the run holds no key that is at its default, at any depth.
    assert fixed_settings(found)["data.augment"] == [{"flip": {}}, {"crop": {"padding": 2}}]
    for nothing in (None, [], ""):
        plain = config(data={"augment": nothing})
        assert plain == config() and "data.augment" not in fixed_settings(plain)


YAML = """
name: digits
training: {epochs: 2, batch_size: 4, learning_rate: 5e-2, l2: 1e-6}
"""


def load(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return RunConfig.load(path, overrides)


@pytest.mark.parametrize(
    "text, value",
    [("1e-6", 1e-6), ("1E-6", 1e-6), ("1.e-6", 1e-6), ("5e2", 500.0), ("+1e+2", 100.0), ("2", 2.0)],
)
def test_numbers_with_an_exponent_are_numbers(text: str, value: float, tmp_path: Path) -> None:
    assert load(tmp_path, YAML.replace("1e-6", text)).training.l2 == value
    assert load(tmp_path, YAML, f"training.l2={text}").training.l2 == value


def test_overrides_replace_and_add(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        YAML,
        "training.epochs=7",
        "data.source=wine",
        "evaluation.deletions=[3, 0.5]",
        "training.clip_norm=null",
        "name=other",
    )
    assert found.training.epochs == 7
    assert found.data.source == "wine"
    assert found.evaluation.deletions == (3, 0.5)
    assert found.training.clip_norm is None
    assert found.name == "other"


@pytest.mark.parametrize(
    "override, reason",
    [
        ("training.epochs", "section.key=value"),
        ("=3", "section.key=value"),
        ("training..epochs=3", "section.key=value"),
        ("name.first=x", "name"),
        ("training.epoch=3", "'epochs'"),
        ("training.epochs=[", "training.epochs"),
        ("training.epochs=many", r"training\.epochs"),
        ("training=3", "training"),
    ],
)
def test_a_wrong_override_is_refused(override: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        load(tmp_path, YAML, override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "mapping"),
        ("- a\n- b", "mapping"),
        ("training: [", "YAML"),
        ("training: {epochs: 1, epochs", "YAML"),
        ("\tname: x", "YAML"),
        ("name: 2020-01-01\ntraining: {}", "plain"),
        ("training: !!python/object/apply:os.system ['true']", "YAML"),
        (YAML + "1: 2\n", "'1'"),
    ],
)
def test_text_that_is_no_configuration_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "config.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml does not exist"):
        RunConfig.load(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="does not exist"):
        RunConfig.load(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match="not a text file"):
        RunConfig.load(tmp_path / "binary")


def test_sections_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        config().training.epochs = 3  # type: ignore[misc]


# Any text without lone surrogates, which no file holds.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
POSITIVE = st.floats(1e-12, 1e12)


@st.composite
def configurations(draw: st.DrawFn) -> RunConfig:
    momentum = draw(st.sampled_from([0.0, 0.5, 0.9]))
    denominator = draw(st.sampled_from(["batch", "remaining"]))
    batch = denominator == "batch"
    return RunConfig.from_values(
        {
            "name": draw(TEXT | st.sampled_from(["1e5", "null", "yes", "0x10", "2020-01-01", "~"])),
            "seed": draw(st.integers(0, 2**63 - 1)),
            "data": {
                "source": draw(TEXT),
                "path": draw(st.none() | TEXT),
                "num_train": draw(st.none() | st.integers(1, 10**9)),
                "test_fraction": draw(st.floats(1e-9, 1 - 1e-9)),
            },
            "model": {"hidden": draw(st.lists(st.integers(1, 10**4), max_size=4))},
            "training": {
                "epochs": draw(st.integers(1, 10**6)),
                "batch_size": draw(st.integers(1, 10**6)),
                "learning_rate": draw(POSITIVE),
                "learning_rate_decay": draw(st.floats(1e-9, 1)),
                "l2": draw(st.just(0.0) | POSITIVE),
                "clip_norm": draw(st.none() | POSITIVE),
                "momentum": momentum,
                "nesterov": bool(momentum) and draw(st.booleans()),
            },
            "retraining": {"denominator": denominator},
            "recursion": {
                "chunk": draw(st.just("auto") | st.integers(2, 1000)),
                "expected_fraction": draw(st.floats(0, 0.99)) if batch else 0.0,
            },
            "evaluation": {
                "deletions": draw(st.lists(st.integers(1, 99) | st.floats(0.01, 0.99), max_size=3))
            },
        }
    )


@settings(deadline=None, max_examples=60)
@given(found=configurations())
def test_a_configuration_written_and_read_is_the_same(found: RunConfig) -> None:
    again = RunConfig.from_text(found.to_yaml(), "text")
    assert again == found
    assert again.to_yaml() == found.to_yaml()


@pytest.mark.parametrize(
    "url", ["s3://bucket/digits.zarr", "gs://b/c/d.zarr", "/rows/x.zarr", "file:///rows/x.zarr"]
)
def test_rows_may_lie_at_a_url_or_an_absolute_path(url: str) -> None:
    assert config(storage={"url": url}).storage.url == url


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://bucket/digits", r"then \.zarr.*s3://bucket/digits'"),
        ("gopher://host/x.zarr", "expected a URL of file, s3"),
        ("rows/x.zarr", "an absolute path"),
        ("s3://bucket/.zarr", r"then \.zarr"),
    ],
)
def test_a_store_that_cannot_be_is_refused_before_anything_runs(url: str, reason: str) -> None:
    assert "storage.url" in refused(reason, storage={"url": url})


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    for url in ("s3://key:hushhush@bucket/x.zarr", "s3://bucket/x.zarr?token=hushhush"):
        said = refused("through the environment", storage={"url": url})
        assert "hushhush" not in said


def test_values_no_machine_could_hold_are_refused() -> None:
    refused("seed", seed=2**63)
    endless: list[Any] = []
    endless.append(endless)
    refused("[Cc]ircular|recursion", training={**TRAINING, "epochs": endless})


def test_an_unknown_codec_is_refused() -> None:
    refused("storage.codec", storage={"codec": "zip"})


@pytest.mark.parametrize("key", ["data.path", "model.init"])
def test_a_url_with_credentials_is_refused_and_not_repeated(key: str) -> None:
    section, name = key.split(".")
    with pytest.raises(ConfigError, match=f"{key}: credentials") as caught:
        config(**{section: {name: "s3://user:pass-word@bucket/x.parquet"}})
    assert "pass-word" not in str(caught.value)
