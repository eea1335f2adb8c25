"""Data sources: what they give, and every way in which a file can be wrong."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine

from pipeline import RunConfig
from pipeline.data import DataConfig, Dataset, load
from pipeline.errors import ConfigError, DataError
from pipeline.run.problem import Problem

X = np.random.default_rng(0).standard_normal((10, 3))
Y = np.arange(10) % 3
UNITS = np.array(["b", "a", "c", "b", "b", "a", "c", "b", "a", "b"])


def from_arrays(
    tmp_path: Path, arrays: dict[str, Any] | None = None, seed: int = 0, **config: Any
) -> Dataset:
    np.savez(tmp_path / "data.npz", **({"x": X, "y": Y} if arrays is None else arrays))
    path = str(tmp_path / "data.npz")
    return load(DataConfig(source="arrays", path=path, **config), seed)


def test_digits_are_scaled_images() -> None:
    data = load(DataConfig(source="digits"), 42)
    assert data.num_samples == 1_437
    assert len(data.test_targets) == 360
    assert data.num_classes == 10
    assert data.inputs.shape == (1_437, 1, 8, 8)
    assert data.inputs.dtype == torch.float32
    assert data.targets.dtype == torch.int64
    assert float(data.inputs.min()) == 0.0
    assert float(data.inputs.max()) == 1.0
    # Together the parts hold every image once, each with its own label.
    inputs = torch.cat([data.inputs, data.test_inputs]).flatten(1) * 16
    found = np.column_stack([inputs.numpy(), torch.cat([data.targets, data.test_targets]).numpy()])
    bunch = load_digits()
    expected = np.column_stack([bunch.data, bunch.target])
    assert np.array_equal(_sorted(found), _sorted(expected))


def _sorted(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.T)]


def test_wine_is_standardised_by_its_training_part() -> None:
    data = load(DataConfig(source="wine"), 42)
    assert data.inputs.shape == (142, 13)
    assert len(data.test_targets) == 36
    assert data.num_classes == 3
    assert torch.allclose(data.inputs.mean(0), torch.zeros(13), atol=1e-5)
    assert torch.allclose(data.inputs.std(0, correction=0), torch.ones(13), atol=1e-5)
    assert float(data.test_inputs.mean(0).abs().max()) > 0.01, "the test part has its own mean"
    labels = torch.cat([data.targets, data.test_targets]).numpy()
    assert np.array_equal(np.bincount(labels), np.bincount(load_wine().target))


@pytest.mark.parametrize("source", ["digits", "wine"])
def test_the_seed_fixes_the_split(source: str) -> None:
    one, two, other = (load(DataConfig(source=source), seed) for seed in (1, 1, 2))
    assert torch.equal(one.inputs, two.inputs)
    assert torch.equal(one.test_targets, two.test_targets)
    assert not torch.equal(one.targets, other.targets)


def test_fewer_training_samples_leave_the_test_part_alone() -> None:
    whole, part = load(DataConfig(), 1), load(DataConfig(num_train=100), 1)
    assert part.num_samples == 100
    assert torch.equal(part.inputs, whole.inputs[:100])
    assert torch.equal(part.test_inputs, whole.test_inputs)


def test_each_sample_is_a_unit_named_by_its_id() -> None:
    data = load(DataConfig(num_train=5), 1)
    assert data.units == tuple(map(str, data.sample_ids.tolist()))
    assert data.unit_of_sample.tolist() == [0, 1, 2, 3, 4]
    assert data.sample_counts == (1, 1, 1, 1, 1)


def test_arrays_are_taken_as_given(tmp_path: Path) -> None:
    arrays = {"x": X, "y": Y, "x_test": X[:2] + 1, "y_test": Y[:2]}
    data = from_arrays(tmp_path, arrays)
    assert torch.equal(data.inputs, torch.from_numpy(X.astype(np.float32)))
    assert data.targets.tolist() == Y.tolist()
    assert torch.equal(data.test_inputs, torch.from_numpy((X[:2] + 1).astype(np.float32)))
    assert data.num_classes == 3


@pytest.mark.parametrize("num, fraction, num_train", [(10, 0.2, 8), (10, 0.25, 7), (7, 0.3, 4)])
def test_the_training_part_is_rounded_down(
    num: int, fraction: float, num_train: int, tmp_path: Path
) -> None:
    data = from_arrays(tmp_path, {"x": X[:num], "y": Y[:num]}, test_fraction=fraction)
    assert data.num_samples == num_train
    assert len(data.test_targets) == num - num_train


@pytest.mark.parametrize("kind", ["text", "truth"])
def test_labels_of_text_and_truth_values_are_numbered_in_sorted_order(
    kind: str, tmp_path: Path
) -> None:
    x = np.arange(8, dtype=np.float32)[:, None]
    names = np.array(["wolf", "ant", "bee", "ant", "bee", "wolf", "ant", "bee"])
    y = names if kind == "text" else names == "wolf"
    path = tmp_path / "data.npz"
    np.savez(path, x=x, y=y, x_test=x[:2], y_test=y[:2])
    data = load(DataConfig(source="arrays", path=str(path)), 1)
    expected = [2, 0, 1, 0, 1, 2, 0, 1] if kind == "text" else [1, 0, 0, 0, 0, 1, 0, 0]
    assert data.targets[torch.argsort(data.inputs[:, 0])].tolist() == expected
    assert data.test_targets.tolist() == expected[:2]
    assert data.num_classes == max(expected) + 1


def test_classes_count_labels_of_the_test_part_too(tmp_path: Path) -> None:
    # The highest class may fall into the split-off part; the network must have an output for it.
    data = from_arrays(tmp_path, {"x": X, "y": np.array([0, 1] * 4 + [0, 7])})
    assert data.num_classes == 8


@pytest.mark.parametrize("kind", ["f4", "f8", "i8", "u1", "?"])
def test_features_of_any_number_type(kind: str, tmp_path: Path) -> None:
    x = (np.abs(X) * 3).astype(kind)
    data = from_arrays(tmp_path, {"x": x, "y": Y, "x_test": x, "y_test": Y})
    assert torch.equal(data.inputs, torch.from_numpy(x.astype(np.float32)))


def test_images_keep_their_shape(tmp_path: Path) -> None:
    data = from_arrays(tmp_path, {"x": np.ones((10, 2, 4, 5)), "y": Y})
    assert data.inputs.shape[1:] == (2, 4, 5)


def test_users_own_their_samples(tmp_path: Path) -> None:
    arrays = {"x": X, "y": Y, "x_test": X, "y_test": Y, "unit": UNITS}
    data = from_arrays(tmp_path, arrays, unit="user")
    assert data.units == ("a", "b", "c")
    assert [data.units[u] for u in data.unit_of_sample.tolist()] == UNITS.tolist()
    assert data.sample_counts == (3, 5, 2)
    mask = data.samples_of(torch.tensor([0, 2]))
    assert mask.tolist() == [name in "ac" for name in UNITS]


def test_users_follow_their_samples_through_the_split(tmp_path: Path) -> None:
    # The first feature tells the owner, so that a mix-up shows.
    x = np.column_stack([np.array([ord(u) for u in UNITS]), np.zeros(10)])
    data = from_arrays(tmp_path, {"x": x, "y": Y, "unit": UNITS}, unit="user")
    owners = [data.units[u] for u in data.unit_of_sample.tolist()]
    assert [ord(owner) for owner in owners] == data.inputs[:, 0].int().tolist()
    assert set(data.units) == set(owners), "a user without training samples is no unit"


def test_users_may_be_numbers_in_a_column_of_any_name(tmp_path: Path) -> None:
    arrays = {"x": X, "y": Y, "x_test": X, "y_test": Y, "writer": np.array([11, 2] * 5)}
    data = from_arrays(tmp_path, arrays, unit="user", user_column="writer")
    assert set(data.units) == {"11", "2"}
    assert [data.units[u] for u in data.unit_of_sample.tolist()] == ["11", "2"] * 5


def test_users_of_a_source_without_owners_are_refused() -> None:
    with pytest.raises(DataError, match="names no owners"):
        load(DataConfig(source="wine", unit="user"), 0)


def with_x(place: tuple[int, ...], value: float) -> dict[str, Any]:
    x = X.copy()
    x[place] = value
    return {"x": x, "y": Y}


TEST_PART = {"x_test": X[:2], "y_test": Y[:2]}
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no y": ({"x": X}, {}, r"no array 'y' \(found: x\)"),
    "no x": ({"y": Y}, {}, r"no array 'x' \(found: y\)"),
    "nothing": ({}, {}, "no array 'x'.*nothing"),
    "NaN": (with_x((4, 1), np.nan), {}, "NaN.*sample"),
    "infinite": (with_x((4, 1), np.inf), {}, "infinite"),
    "beyond float32": (with_x((4, 1), 1e39), {}, "infinite|large"),
    "NaN in the test part": (
        {"x": X, "y": Y, "x_test": with_x((0, 0), np.nan)["x"][:2], "y_test": Y[:2]},
        {},
        "test samples hold NaN",
    ),
    "negative label": ({"x": X, "y": Y - 1}, {}, "label -1"),
    "test label outside": (
        {"x": X, "y": Y, "x_test": X[:2], "y_test": np.array([0, 3])},
        {},
        r"label 3.*0\.\.2",
    ),
    "labels with fractions": ({"x": X, "y": Y / 2}, {}, "y has shape.*whole"),
    "labels of two kinds": (
        {"x": X, "y": Y.astype(str), "x_test": X, "y_test": Y},
        {},
        "labels of one kind.*y_test of type int",
    ),
    "an empty label": ({"x": X, "y": np.where(Y == 1, "", "a")}, {}, "empty text"),
    "labels one-hot": ({"x": X, "y": np.eye(3)[Y].astype(int)}, {}, r"y has shape \(10, 3\)"),
    "fewer labels": ({"x": X, "y": Y[:9]}, {}, "x holds 10 samples, y 9"),
    "flat features": ({"x": X[:, 0], "y": Y}, {}, r"x has shape \(10,\)"),
    "features as text": ({"x": X.astype(str), "y": Y}, {}, "x has shape.*numbers"),
    "complex features": ({"x": X + 1j, "y": Y}, {}, "x has shape.*numbers"),
    "no samples": ({"x": X[:0], "y": Y[:0]}, {}, "no training samples"),
    "no features": ({"x": X[:, :0], "y": Y}, {}, r"x has shape \(10, 0\)"),
    "one sample": ({"x": X[:1], "y": Y[:1]}, {}, "no training samples"),
    "x_test alone": ({"x": X, "y": Y, "x_test": X[:2]}, {}, "x_test and y_test"),
    "y_test alone": ({"x": X, "y": Y, "y_test": Y[:2]}, {}, "x_test and y_test"),
    "other test features": (
        {"x": X, "y": Y, "x_test": X[:2, :2], "y_test": Y[:2]},
        {},
        r"x has samples of shape \(3,\), x_test of \(2,\)",
    ),
    "empty test part": (
        {"x": X, "y": Y, "x_test": X[:0], "y_test": Y[:0]},
        {},
        "no test samples",
    ),
    "more training samples than there are": ({"x": X, "y": Y}, {"num_train": 9}, "num_train is 9"),
    "the same with a test part": (
        {"x": X, "y": Y, **TEST_PART},
        {"num_train": 11},
        "num_train is 11",
    ),
    "no owners": ({"x": X, "y": Y}, {"unit": "user"}, "no array 'unit'.*user_column"),
    "no such column": (
        {"x": X, "y": Y, "unit": UNITS},
        {"unit": "user", "user_column": "writer"},
        "no array 'writer'",
    ),
    "fewer owners": ({"x": X, "y": Y, "unit": UNITS[:9]}, {"unit": "user"}, "9 owners for 10"),
    "an empty owner": (
        {"x": X, "y": Y, "unit": np.where(UNITS == "c", "", UNITS)},
        {"unit": "user"},
        "'unit' names no owner for 2 samples.*sample 2",
    ),
    "a missing owner": (
        {"x": X, "y": Y, "unit": np.array([1.0, np.nan] * 5)},
        {"unit": "user"},
        "'unit' names no owner for 5 samples.*sample 1",
    ),
    "a table of owners": (
        {"x": X, "y": Y, "unit": np.stack([UNITS, UNITS], 1)},
        {"unit": "user"},
        r"unit has shape \(10, 2\)",
    ),
    "pickled features": ({"x": X.astype(object), "y": Y}, {}, "plain arrays"),
    "pickled owners": (
        {"x": X, "y": Y, "unit": UNITS.astype(object)},
        {"unit": "user"},
        "plain arrays",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arrays_are_refused(bad: str, tmp_path: Path) -> None:
    arrays, config, reason = BAD[bad]
    with pytest.raises(DataError, match=reason) as caught:
        from_arrays(tmp_path, arrays, **config)
    assert "\n" not in str(caught.value)


def saved(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def single() -> bytes:
    stream = io.BytesIO()
    np.save(stream, X)
    return stream.getvalue()


def pickled() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"x": 1}], dtype=object), allow_pickle=True)
    return stream.getvalue()


def zipped(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x", content)
        archive.writestr("y", content)
    return stream.getvalue()


def flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 0xFF
    return bytes(changed)


FILES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"x,y\n1,2\n",
    "a single array": single,
    "a pickle": pickled,
    "cut short": lambda: saved(x=X, y=Y)[:200],
    "a zip of something else": lambda: zipped(b"hello"),
    "a flipped byte in the first array": lambda: flipped(saved(x=X, y=Y), 120),
}


@pytest.mark.parametrize("file", FILES)
def test_files_that_are_no_npz_are_refused(file: str, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(FILES[file]())
    with pytest.raises(DataError) as caught:
        load(DataConfig(source="arrays", path=str(path)), 0)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flipped_byte_of_any_array_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    content = saved(x=X, y=Y, x_test=X, y_test=Y)
    path.write_bytes(content)
    intact = load(DataConfig(source="arrays", path=str(path)), 0)
    # The directory at the end bears no checksum of its own: what it says is believed.
    for place in range(0, content.index(b"PK\x01\x02"), 2):
        path.write_bytes(flipped(content, place))
        try:
            data = load(DataConfig(source="arrays", path=str(path)), 0)
        except DataError:
            continue
        assert torch.equal(data.inputs, intact.inputs)
        assert torch.equal(data.targets, intact.targets)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.npz does not exist"):
        load(DataConfig(source="arrays", path=str(tmp_path / "nothing.npz")), 0)
    with pytest.raises(DataError, match="does not exist"):
        load(DataConfig(source="arrays", path=str(tmp_path)), 0)
    with pytest.raises(DataError, match=r"data\.path"):
        load(DataConfig(source="arrays"), 0)


def test_a_path_for_a_source_that_ships_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.path"):
        load(DataConfig(source="digits", path="somewhere"), 0)


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'digit' is unknown; did you mean 'digits'"):
        load(DataConfig(source="digit"), 0)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    training = {"epochs": 1, "batch_size": 143, "learning_rate": 0.1}
    values: dict[str, Any] = {"data": {"source": "wine"}, "training": training}
    with pytest.raises(ConfigError, match=r"batch_size is 143.*142"):
        Problem.of(RunConfig.from_values(values))
    training["batch_size"] = 142
    assert Problem.of(RunConfig.from_values(values)).data.num_samples == 142
