"""A sample's id is its row in the source's training file, whatever is split off or left out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_digits, load_wine

from pipeline.data import DataConfig, Dataset, load
from pipeline.data.cifar10 import cifar10
from pipeline.errors import DataError
from tests.pipeline.test_data_sources import write_mnist
from tests.pipeline.test_data_sources_cifar10 import write_cifar
from tests.pipeline.test_data_sources_faces import NUM_PHOTOS, is_male, write_celeba, write_lfw
from tests.pipeline.test_data_sources_tables import write_adult, write_hapt, write_obesity

SEED = 5


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def arrays_source(folder: Path, with_test: bool) -> tuple[str, np.ndarray]:
    labels = np.random.default_rng(0).integers(0, 3, 60)
    x = np.arange(60.0)[:, None]
    test = {"x_test": x[:5], "y_test": labels[:5]} if with_test else {}
    return npz(folder / "d.npz", x=x, y=labels, **test), labels


def parquet_source(folder: Path) -> tuple[str, np.ndarray]:
    """Write a folder whose files are read in the order of their paths, as text."""
    labels = np.random.default_rng(0).integers(0, 3, 60)
    for name, rows in (("b/part-10", slice(20, 45)), ("b/part-2", slice(45, 60)), ("a", slice(20))):
        path = folder / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        inputs = [[float(row)] for row in range(60)[rows]]
        pq.write_table(pa.table({"x": inputs, "y": labels[rows]}), path)
    return str(folder), labels


def mnist_source(folder: Path) -> tuple[str, np.ndarray]:
    labels = write_mnist(folder, packed=False, num_train=100)[1]
    return str(folder), labels


def written(write: Callable[[Path], Any], labels: list[int]) -> Callable[[Path], tuple[str, Any]]:
    def source(folder: Path) -> tuple[str, Any]:
        write(folder)
        return str(folder), np.array(labels)

    return source


SOURCES: dict[str, Callable[[Path], tuple[str | None, np.ndarray]]] = {
    "arrays": lambda folder: arrays_source(folder, with_test=False),
    "arrays with a test part": lambda folder: arrays_source(folder, with_test=True),
    "parquet": parquet_source,
    "digits": lambda _: (None, load_digits().target),
    "wine": lambda _: (None, load_wine().target),
    "mnist": mnist_source,
    "adult": written(write_adult, [0, 1]),
    "obesity": written(write_obesity, [i % 7 for i in range(140)]),
    "hapt": written(write_hapt, [i % 12 for i in range(24)]),
    "celeba": written(write_celeba, [int(is_male(place)) for place in range(NUM_PHOTOS)]),
    "lfw": written(write_lfw, [0] * 30 + [1] * 33),
}
HELD_OUT = {"arrays", "parquet", "digits", "wine", "obesity", "lfw", "celeba"}


def check_rows(data: Dataset, labels: np.ndarray) -> None:
    ids = data.sample_ids
    assert data.rows is not None
    assert data.targets.tolist() == labels[ids].tolist()
    if len(data.rows.held_out):
        assert sorted(data.test_targets.tolist()) == sorted(labels[data.rows.held_out].tolist())
    every = np.concatenate([ids, data.rows.held_out, data.rows.unused])
    assert np.array_equal(np.sort(every), np.arange(len(labels))), "each row once"
    assert data.units == tuple(map(str, ids.tolist()))
    assert torch.equal(data.positions_of(ids.flip(0)), torch.arange(len(ids)).flip(0))


@pytest.mark.parametrize("name", SOURCES)
def test_the_id_of_a_sample_is_its_row_in_the_source(name: str, tmp_path: Path) -> None:
    path, labels = SOURCES[name](tmp_path)
    source = name.split()[0]
    data = load(DataConfig(source=source, path=path), SEED)
    check_rows(data, labels)
    assert data.rows is not None and (len(data.rows.held_out) > 0) == (name in HELD_OUT)
    if name in ("arrays", "parquet"):
        assert torch.equal(data.inputs[:, 0], data.sample_ids.float())
    if name in ("adult", "hapt", "arrays with a test part"):
        assert torch.equal(data.sample_ids, torch.arange(len(labels)))
    if name in ("arrays", "arrays with a test part", "mnist", "digits"):
        fewer = load(DataConfig(source=source, path=path, num_train=40), SEED)
        check_rows(fewer, labels)
        assert fewer.num_samples == 40 and fewer.rows is not None and len(fewer.rows.unused)


def test_the_batches_of_cifar10_are_counted_through(tmp_path: Path) -> None:
    digests, _, labels = write_cifar(tmp_path / "cifar")
    config = DataConfig(source="cifar10", path=str(tmp_path / "cifar"), num_train=60)
    data = cifar10(config, SEED, digests)
    check_rows(data, np.array(labels))
    assert int(data.sample_ids.max()) > 80, "the fifth batch"


def test_samples_of_users_have_ids_too(tmp_path: Path) -> None:
    owners = np.array(["b", "a", "c", "b", "b", "a", "c", "b", "a", "b"])
    path = npz(tmp_path / "d.npz", x=np.arange(10.0)[:, None], y=np.arange(10) % 2, unit=owners)
    data = load(DataConfig(source="arrays", path=path, unit="user"), SEED)
    found = [data.units[unit] for unit in data.unit_of_sample.tolist()]
    assert found == owners[data.sample_ids].tolist()
    writers = load(DataConfig(unit="user", user_column="writer"), SEED)
    for sample, unit in zip(writers.sample_ids, writers.unit_of_sample, strict=True):
        assert writers.units[unit] == f"writer-{sample // 20:02d}"
    assert writers.rows is not None
    assert set(writers.rows.unused.tolist()) == set(range(1780, 1797))


def test_rows_that_do_not_train_are_refused_by_what_they_are(tmp_path: Path) -> None:
    data = load(DataConfig(num_train=100), SEED)
    assert data.rows is not None
    for ids, message in (
        (data.rows.held_out, "is held out for testing"),
        (data.rows.unused, "is left out of the training set"),
        (np.array([1797, -1]), r"is not in the source, whose rows are 0\.\.1796"),
    ):
        for sample in (ids[0], ids[-1]):
            both = torch.tensor([int(data.sample_ids[3]), int(sample)])
            with pytest.raises(DataError, match=f"sample {sample} {message}"):
                data.positions_of(both)


def test_messages_name_the_row(tmp_path: Path) -> None:
    x = np.zeros((10, 2))
    x[:, 0] = np.arange(10)
    x[[3, 7], 1] = np.nan
    path = npz(tmp_path / "d.npz", x=x, y=np.arange(10) % 2)
    with pytest.raises(DataError, match=r"the first is sample (3|7)\)"):
        load(DataConfig(source="arrays", path=path), SEED)


def test_positions_remain_the_ids_of_runs_of_the_first_version() -> None:
    new = load(DataConfig(num_train=50), SEED)
    old = load(DataConfig(num_train=50, sample_ids="position"), SEED)
    assert torch.equal(old.inputs, new.inputs) and torch.equal(old.targets, new.targets)
    assert torch.equal(old.sample_ids, torch.arange(50))
    assert old.units == tuple(map(str, range(50)))
    with pytest.raises(DataError, match=r"sample 50 is not of the training set \(0\.\.49\)"):
        old.positions_of(torch.tensor([3, 50]))
