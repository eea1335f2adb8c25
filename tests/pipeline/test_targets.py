"""Targets, weights and whole-number inputs of a user's data, by what the loss takes."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet as pq
from torch import nn

from pipeline.config import DataConfig, RunConfig
from pipeline.data import Dataset, load
from pipeline.errors import ConfigError, DataError, ModelError
from pipeline.run.problem import Problem, digest_of

N = 20
GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((N, 3))
NUMBERS = GENERATOR.standard_normal(N)
TOKENS = GENERATOR.integers(0, 7, (N, 4))
TOKENS[3] = -100


def arrays(tmp_path: Path, loss: str, y: Any, **more: Any) -> Dataset:
    settings = {name: more.pop(name) for name in list(more) if name in DataConfig.model_fields}
    np.savez(tmp_path / "d.npz", **{"x": X, "y": y, **more})
    return load(DataConfig(source="arrays", path=str(tmp_path / "d.npz"), **settings), 0, loss)


def columns(tmp_path: Path, loss: str, y: Any, **more: Any) -> Dataset:
    settings = {name: more.pop(name) for name in list(more) if name in DataConfig.model_fields}
    table = pa.table({"x": X.tolist(), "y": np.asarray(y).tolist(), **more})
    pq.write_table(table, tmp_path / "d.parquet")
    return load(DataConfig(source="parquet", path=str(tmp_path / "d.parquet"), **settings), 0, loss)


TRUTH = np.arange(N) % 2
# Labels, the targets that they stand for, and the outputs of a model for them.
TAKEN: dict[str, tuple[str, Any, Any, int]] = {
    "truth values as numbers": ("binary-cross-entropy", TRUTH, TRUTH, 1),
    "truth values": ("binary-cross-entropy", TRUTH == 1, TRUTH, 1),
    "two texts": ("binary-cross-entropy", np.array(["no", "yes"])[TRUTH], TRUTH, 1),
    "soft labels": ("binary-cross-entropy", TRUTH / 2, TRUTH / 2, 1),
    "label vectors": ("binary-cross-entropy", TOKENS > 2, TOKENS > 2, 4),
    "numbers": ("squared-error", NUMBERS, NUMBERS, 1),
    "whole numbers": ("huber", np.arange(N) - 5, np.arange(N) - 5, 1),
    "vectors": ("squared-error", X, X, 3),
    "counts": ("poisson", np.arange(N), np.arange(N), 1),
    "tokens": ("token-cross-entropy", TOKENS, TOKENS, 7),
    "own, of numbers": ("a:b", NUMBERS, NUMBERS, 1),
    "own, of classes": ("a:b", TRUTH, TRUTH, 2),
    "own, of texts": ("a:b", np.array(["no", "yes"])[TRUTH], TRUTH, 2),
}


@pytest.mark.parametrize("source", [arrays, columns])
@pytest.mark.parametrize("name", TAKEN)
def test_a_loss_gets_the_targets_that_it_takes(name: str, source: Any, tmp_path: Path) -> None:
    loss, y, expected, outputs = TAKEN[name]
    data = source(tmp_path, loss, y)
    assert data.num_classes == outputs
    whole = loss == "token-cross-entropy" or name in ("own, of classes", "own, of texts")
    assert data.targets.dtype == (torch.int64 if whole else torch.float32)
    found = torch.cat([data.targets, data.test_targets]).double()
    rows = np.concatenate([data.rows.trained, data.rows.held_out])
    # The test part is in the order of the split.
    trained = torch.from_numpy(np.asarray(expected, float)[rows[:16]])
    torch.testing.assert_close(found[:16], trained, rtol=1e-6, atol=0)
    held_out = np.sort(np.asarray(expected, np.float32)[rows[16:]], axis=0)
    assert np.allclose(np.sort(found[16:].numpy(), axis=0), held_out)
    if "texts" in name:
        assert data.class_names == ("no", "yes")


REFUSED: dict[str, tuple[str, Any, str]] = {
    "numbers for classes": ("cross-entropy", NUMBERS, "type .*(float64|double).*training.loss"),
    "three truth values": (
        "binary-cross-entropy",
        np.arange(N) % 3,
        "holds 2; expected truth values .* training.loss binary-cross-entropy takes .* cross-entropy",
    ),
    "three texts": (
        "binary-cross-entropy",
        np.array(["a", "b", "c"])[np.arange(N) % 3],
        "holds 3 different texts; training.loss binary-cross-entropy takes two",
    ),
    "negative counts": ("poisson", NUMBERS, "holds -.*at least 0.*training.loss poisson"),
    "texts for numbers": ("squared-error", np.array(["a", "b"])[TRUTH], "<U1.*squared-error takes"),
    "classes for tokens": ("token-cross-entropy", TRUTH, r"shape \(20,\).*token-cross-entropy"),
    "a negative token": ("token-cross-entropy", np.full((N, 2), -2), "holds -2; expected .* -100"),
    "numbers that are infinite": ("huber", np.full(N, 1e39), "infinite values as targets"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("source", [arrays, columns])
def test_other_targets_are_refused_by_name(name: str, source: Any, tmp_path: Path) -> None:
    loss, y, message = REFUSED[name]
    if source is columns and name == "numbers for classes":
        message = "double; expected text, or whole numbers .* training.loss takes classes"
    with pytest.raises(DataError, match=message) as caught:
        source(tmp_path, loss, y)
    assert "\n" not in str(caught.value)


def test_test_targets_have_the_shape_of_the_others(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"y has shape \(20, 3\), y_test \(5, 2\)"):
        arrays(tmp_path, "squared-error", X, x_test=X[:5], y_test=X[:5, :2])


def test_sources_of_classes_and_of_numbers_say_which_loss_they_are_for() -> None:
    diabetes = load(DataConfig(source="diabetes"), 0, "squared-error")
    assert diabetes.num_samples == 353 and diabetes.inputs.shape == (353, 10)
    every = torch.cat([diabetes.inputs, diabetes.test_inputs]).double()
    torch.testing.assert_close(every.mean(0), torch.zeros(10).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(every.std(0, correction=0), torch.ones(10).double())
    progression = torch.cat([diabetes.targets, diabetes.test_targets]) * 75 + 150
    assert float(progression.min()) == pytest.approx(25) and float(progression.max()) == 346
    message = (
        "source 'diabetes' holds numbers of either sign, and training.loss {} takes .* squared"
    )
    for loss in ("cross-entropy", "poisson", "binary-cross-entropy"):
        with pytest.raises(DataError, match=message.format(loss)):
            load(DataConfig(source="diabetes"), 0, loss)
    with pytest.raises(DataError, match=r"source 'wine' holds 3 classes, and training\.loss huber"):
        load(DataConfig(source="wine"), 0, "huber")
    with pytest.raises(ConfigError, match="weight_column is for the sources arrays and parquet"):
        load(DataConfig(source="wine", weight_column="w"), 0)


WEIGHTS = np.linspace(0, 2, N)


def test_weights_travel_with_their_samples(tmp_path: Path) -> None:
    plain = arrays(tmp_path, "cross-entropy", TRUTH)
    found = [
        arrays(tmp_path, "cross-entropy", TRUTH, sample_weight=WEIGHTS),
        arrays(tmp_path, "cross-entropy", TRUTH, w=WEIGHTS, weight_column="w"),
        arrays(tmp_path, "cross-entropy", TRUTH, weights=WEIGHTS, weight_column="weights"),
        columns(tmp_path, "cross-entropy", TRUTH, w=WEIGHTS, weight_column="w"),
    ]
    assert plain.weights is None
    for data in found:
        assert data.weights is not None and data.rows is not None
        assert data.weights.tolist() == WEIGHTS[data.rows.trained].tolist()
    assert len({digest_of(data) for data in [plain, *found[:3]]}) == 2
    few = arrays(tmp_path, "cross-entropy", TRUTH, sample_weight=WEIGHTS, num_train=5)
    assert few.weights is not None and few.rows is not None
    assert few.weights.tolist() == WEIGHTS[few.rows.trained].tolist() and len(few.weights) == 5


BAD_WEIGHTS: dict[str, tuple[dict[str, Any], str]] = {
    "negative": ({"sample_weight": -WEIGHTS}, "sample_weight is -0.105263 for sample 1"),
    "NaN": ({"sample_weight": np.where(WEIGHTS > 1, np.nan, 1.0)}, "is nan for sample 10"),
    "infinite": ({"sample_weight": np.full(N, np.inf)}, "is inf for sample 0"),
    "text": ({"sample_weight": np.full(N, "1")}, "expected a weight for each of the 20"),
    "too few": ({"sample_weight": np.ones(3)}, r"shape \(3,\)"),
    "all zero": ({"sample_weight": np.zeros(N)}, "weights of all 16 training samples are 0"),
    "another name": ({"weights": WEIGHTS}, "holds 'weights', .* set data.weight_column: weights"),
    "not there": ({"weight_column": "w"}, "no array 'w'.*data.weight_column names"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_weights_that_are_none_are_refused(name: str, tmp_path: Path) -> None:
    more, message = BAD_WEIGHTS[name]
    with pytest.raises(DataError, match=message):
        arrays(tmp_path, "cross-entropy", TRUTH, **more)


def test_a_missing_weight_of_parquet_is_refused(tmp_path: Path) -> None:
    weights = [None, *WEIGHTS[1:].tolist()]
    with pytest.raises(DataError, match="column 'w' has no weight in 1 rows"):
        columns(tmp_path, "cross-entropy", TRUTH, w=weights, weight_column="w")


def embedding(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Embeds tokens."""
    return nn.Sequential(
        nn.Embedding(7, 3), nn.Flatten(), nn.Linear(3 * input_shape[0], num_classes)
    )


def linear(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Takes numbers."""
    return nn.Linear(input_shape[0], num_classes)


def problem(tmp_path: Path, x: Any, model: str) -> Problem:
    np.savez(tmp_path / "d.npz", x=x, y=TRUTH)
    values = {
        "data": {"source": "arrays", "path": str(tmp_path / "d.npz")},
        "model": {"name": model},
        "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1, "optimizer": "adam"},
    }
    return Problem.of(RunConfig.from_values(values))


def test_whole_numbers_stay_whole_for_a_model_that_embeds_them(tmp_path: Path) -> None:
    here = "tests.pipeline.test_targets"
    tokens = np.abs(TOKENS) % 7
    kept = problem(tmp_path, tokens, f"{here}:embedding")
    assert kept.data.inputs.dtype == kept.data.test_inputs.dtype == torch.int64
    # Numbers they remain for every other model, as in earlier versions, digest included.
    for model in ("logistic", f"{here}:linear"):
        found = problem(tmp_path, tokens, model)
        assert found.data.inputs.dtype == torch.float32
        assert found.data_digest == kept.data_digest
        assert problem(tmp_path, tokens.astype(float), model).data_digest == kept.data_digest
    assert problem(tmp_path, tokens.astype(np.uint8), "logistic").data.inputs.dtype == torch.float32
    with pytest.raises(ModelError, match=r"the model fails on samples of shape .*Long"):
        problem(tmp_path, tokens.astype(np.uint8), f"{here}:embedding")


def test_parquet_keeps_tokens_as_well(tmp_path: Path) -> None:
    table = pa.table({"x": TOKENS.tolist(), "y": TOKENS.tolist()})
    pq.write_table(table, tmp_path / "t.parquet")
    config = DataConfig(source="parquet", path=str(tmp_path / "t.parquet"))
    data = load(config, 0, "token-cross-entropy")
    assert data.inputs.dtype == torch.int64 and torch.equal(data.inputs, data.targets)
