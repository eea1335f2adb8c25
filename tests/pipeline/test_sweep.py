"""Variants of a configuration, and the page that compares them."""

import re
from typing import Any

import pytest

from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.evaluation.sweep import SETTINGS, Variant, point
from pipeline.evaluation.sweep_page import error_plot, render

BASE = RunConfig.from_values(
    {
        "name": "small",
        "model": {"name": "mlp", "activation": "tanh"},
        "training": {
            "epochs": 4,
            "batch_size": 8,
            "learning_rate": 0.05,
            "learning_rate_decay": 0.99,
        },
        "certificate": {"kind": "calibrated", "max_units": 3},
    }
)


def _labels(name: str, base: RunConfig = BASE) -> list[str]:
    return [variant.label for variant in SETTINGS[name].variants(base)]


def test_every_setting_has_the_configured_value_among_those_it_tries() -> None:
    plain = Variant("as-configured", ()).of(BASE)
    assert plain.certificate.kind == "none"
    for name in sorted(set(SETTINGS) - {"encoding"}):
        configs = [variant.of(BASE) for variant in SETTINGS[name].variants(BASE)]
        assert plain in configs, name
        assert len({config.to_yaml() for config in configs}) == len(configs) > 1, name


def test_values_are_those_around_the_configured_one() -> None:
    assert _labels("step-size") == ["0.0125", "0.025", "0.05", "0.1", "0.2"]
    assert _labels("epochs") == ["1", "2", "4", "8", "16"]
    assert _labels("decay") == ["1", "0.9995", "0.998", "0.995", "0.99"]
    assert _labels("clipping") == ["none", "3", "1", "0.3", "0.1"]
    short = BASE.model_copy(update={"training": BASE.training.model_copy(update={"epochs": 1})})
    assert _labels("epochs", short) == ["1", "2", "4"]


def test_a_model_without_activation_has_none_to_try() -> None:
    logistic = RunConfig.from_values({"training": BASE.training.model_dump(mode="json")})
    assert _labels("activation", logistic) == []


def test_only_the_setting_itself_changes() -> None:
    for variant in SETTINGS["activation"].variants(BASE):
        config = variant.of(BASE)
        assert config.training == BASE.training
        assert config.model.hidden == BASE.model.hidden


def test_a_value_that_contradicts_the_rest_is_refused() -> None:
    values = BASE.model_dump(mode="json")
    values["retraining"]["denominator"] = "batch"
    values["recursion"]["expected_fraction"] = 0.1
    base = RunConfig.from_values(values)
    remaining = SETTINGS["denominator"].variants(base)[0]
    with pytest.raises(ConfigError, match="expected_fraction"):
        remaining.of(base)


def trial(units: int, error: float | None) -> dict[str, Any]:
    """A trial of a report, as far as a sweep reads it."""
    return {
        "units": units,
        "repeats": 3,
        "distance": 0.001,
        "no_update_distance": 0.1,
        "relative_error": error,
        "relative_error_range": [error, error],
        "loss_change_pearson": 0.99,
        "loss_change_points": [[0.0, 0.0]],
        "test_accuracy": {"trained": 0.9, "unlearned": 0.9, "retrained": 0.91},
    }


def sweep_of(points: list[dict[str, Any]]) -> dict[str, Any]:
    """A sweep of one setting."""
    entry = {"setting": "epochs", "title": "Epochs", "is_ordered": True, "points": points}
    empty = {"setting": "activation", "title": "Activation", "is_ordered": False, "points": []}
    return {
        "name": "<small>",
        "num_units": 20,
        "settings": [entry, empty],
        "config": BASE.model_dump(mode="json"),
        "environment": {"torch": "2"},
    }


def test_the_page_has_each_value_once_and_says_what_was_refused() -> None:
    report = {"deletions": [trial(1, 0.012), trial(4, 0.3)], "bytes_per_parameter": 2.0}
    good = point(Variant("4", ()), report, None) | {"is_configured": True}
    bad = point(Variant("16", ()), None, "no longer finite at step 3") | {"is_configured": False}
    assert "loss_change_points" not in good["deletions"][0]
    html = render(sweep_of([good, bad]))
    assert html.count("<svg") == 1
    assert "&lt;small&gt;" in html
    assert "16: no longer finite at step 3" in html
    assert "Not applicable to this model: Activation" in html
    cells = re.findall(r"<th scope=\"row\">(.*?)</th><td>(.*?)</td>", html)
    assert cells == [("4, as configured", "1"), ("4, as configured", "4"), ("16", "-")]
    assert "1.2%" in html


def test_an_error_that_is_not_defined_leaves_a_gap() -> None:
    report = {"deletions": [trial(1, None)], "bytes_per_parameter": 2.0}
    entry = sweep_of([point(Variant("4", ()), report, None) | {"is_configured": True}])
    assert error_plot(entry["settings"][0], 20).svg.startswith("<svg")
    assert ">-<" in render(entry)
