"""Lazy inputs: the bits of whole ones, for every source, index, type and run."""

import hashlib
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from cluster.resources import worker_bytes
from cluster.upkeep import prune_run
from pipeline import RunConfig, RunDirectory, precompute, train
from pipeline.data import DataConfig, Dataset, images, input_files, load
from pipeline.data.cifar10 import DIGESTS, cifar10
from pipeline.data.input_files import InputFiles
from pipeline.data.lazy_inputs import LazyInputs, OwnInputs, bytes_without_file, picture_values
from pipeline.errors import ConfigError, DataError
from pipeline.run.trained_part import featurise
from storage.store import ApproximatorStore
from tests.pipeline.fake_store import use_key
from tests.pipeline.test_data_sources_cifar10 import write_cifar
from tests.pipeline.test_data_sources_faces import write_celeba, write_lfw
from tests.pipeline.test_data_sources_parquet import IMAGES_NHW, LABELS, USERS, png

MEAN, DEVIATION = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
PIXELS = np.random.default_rng(1).integers(0, 256, (40, 3, 6, 5), dtype=np.uint8)


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "LARGE_BYTES", 1)


def numbers_of(pixels: np.ndarray) -> np.ndarray:
    """The arithmetic that runs were recorded with, step by step in float32."""
    numbers = pixels.astype(np.float32)
    numbers /= 255
    numbers -= MEAN.astype(np.float32)[:, None, None]
    numbers /= DEVIATION.astype(np.float32)[:, None, None]
    return numbers


def lazy(rows: np.ndarray = PIXELS, dtype: torch.dtype = torch.float32) -> LazyInputs:
    own = OwnInputs(rows, picture_values(MEAN, DEVIATION, 3))
    return LazyInputs(own, dtype, torch.device("cpu"))


def test_a_byte_has_the_bits_of_the_arithmetic_on_whole_arrays() -> None:
    every_CV11 = np.tile(np.arange(256, dtype=np.uint8)[:, None, None, None], (1, 3, 1, 1))
    values_CV = picture_values(MEAN, DEVIATION, 3)
    assert (
        values_CV.tobytes() == np.ascontiguousarray(numbers_of(every_CV11)[..., 0, 0].T).tobytes()
    )
    plain = np.divide(every_CV11[:, 0, 0, 0], 255, dtype=np.float32)
    assert picture_values(None, None, 1)[0].tobytes() == plain.tobytes()


INDICES: tuple[Any, ...] = (
    0, -1, slice(3, 9), slice(None), slice(30, 99), slice(9, 3), slice(1, 20, 4), slice(None, -38),
    torch.tensor([5, 0, 5, -1]), torch.arange(40) % 3 == 0, torch.tensor([], dtype=torch.int64),
    np.int64(3), torch.tensor(3), [4, 2], np.array([4, 2]),
    (slice(None), 1), torch.tensor([[1, 2], [3, 4]]), None, ...,
)  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_indexing_is_that_of_the_whole_tensor(index: Any, dtype: torch.dtype) -> None:
    whole = torch.from_numpy(numbers_of(PIXELS)).to(dtype)
    found = lazy().to(dtype)[index]
    assert type(found) is Tensor
    assert torch.equal(found, whole[index])
    assert found.dtype == dtype
    # Strides say which layout gradients get.
    if whole[index].is_contiguous():
        assert found.stride() == whole[index].stride()


@pytest.mark.parametrize("index", [40, -41, torch.tensor([0, 40]), torch.tensor([-41])])
def test_samples_that_are_not_there_are_refused(index: Any) -> None:
    with pytest.raises(IndexError):
        lazy()[index]


OPERATIONS: tuple[Callable[[Tensor], Any], ...] = (
    lambda x: torch.cat([x, torch.zeros(1, 3, 6, 5)]),
    lambda x: torch.cat(list(x.split(7))),
    lambda x: torch.cat(x.split([30, 10])),
    lambda x: x.flatten(1).double().norm(dim=1),
    lambda x: torch.zeros(1).to(x).dtype,
    lambda x: (x.shape, x.dtype, x.device, len(x), x.nelement(), x.element_size(), x.dim()),
    lambda x: (x.is_floating_point(), x.to("cpu").dtype, x.to(dtype=torch.float64)[:2].sum()),
)


@pytest.mark.parametrize("number", range(len(OPERATIONS)))
def test_operations_are_those_of_the_whole_tensor(number: int) -> None:
    whole = torch.from_numpy(numbers_of(PIXELS))
    found, expected = OPERATIONS[number](lazy()), OPERATIONS[number](whole)
    same = torch.equal(found, expected) if isinstance(expected, Tensor) else found == expected
    assert same


def test_parts_are_made_one_by_one_and_the_repr_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    real = OwnInputs.between
    monkeypatch.setattr(
        OwnInputs, "between", lambda own, *ends: (made.append(1), real(own, *ends))[1]
    )
    inputs = lazy()
    parts = inputs.to(torch.float64).split(10)
    assert repr(inputs) == "LazyInputs(shape=(40, 3, 6, 5), dtype=torch.float32, device=cpu)"
    assert not made
    next(parts)
    assert len(made) == 1


def test_another_process_reads_the_same(tmp_path: Path, everything_is_large: None) -> None:
    rows = InputFiles(tmp_path).kept(("pixels",), lambda allocate: filled(allocate, PIXELS))
    inputs = LazyInputs(
        OwnInputs(rows, picture_values(MEAN, DEVIATION, 3)), torch.float64, torch.device("cpu")
    )
    sent = pickle.dumps(inputs)
    assert len(sent) < 6_000, "the file's name is sent, not its content"
    assert torch.equal(pickle.loads(sent)[:], inputs[:])


def filled(allocate: input_files.Allocate, values: np.ndarray) -> np.ndarray:
    array = allocate(values.shape, values.dtype)
    array[:] = values
    return array


def write_pictures(folder: Path) -> None:
    pictures = [png(image) for image in IMAGES_NHW]
    columns = {"image": pictures, "label": LABELS, "user": USERS}
    pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=7)


def from_parquet(path: Path, files: InputFiles, **settings: Any) -> Dataset:
    values = {"source": "parquet", "path": str(path / "a.parquet"), **settings}
    return load(DataConfig.model_validate(values), 3, files=files)


def from_cifar(path: Path, files: InputFiles) -> Dataset:
    folder = path / "cifar"
    if not folder.exists():
        write_cifar(folder)
    digests = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in DIGESTS}
    values = {"source": "cifar10", "path": str(folder), "num_train": 60}
    return cifar10(DataConfig.model_validate(values), 3, digests, files)


def from_faces(source: str, path: Path, files: InputFiles) -> Dataset:
    if not (path / source).exists():
        {"celeba": write_celeba, "lfw": write_lfw}[source](path / source)
    values = {"source": source, "path": str(path / source), "test_fraction": 0.4, "unit": "user"}
    return load(DataConfig.model_validate(values), 3, files=files)


def of_pictures(path: Path, files: InputFiles) -> Dataset:
    if not (path / "a.parquet").exists():
        write_pictures(path)
    return from_parquet(path, files)


SOURCES: dict[str, Callable[[Path, InputFiles], Dataset]] = {
    "celeba": partial(from_faces, "celeba"),
    "lfw": partial(from_faces, "lfw"),
    "cifar10": from_cifar,
    "parquet": of_pictures,
}


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_gives_the_same_bits_whole_and_lazy(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SOURCES[source](tmp_path, InputFiles())
    assert type(whole.inputs) is Tensor
    monkeypatch.setattr(input_files, "LARGE_BYTES", 1)
    for files in (InputFiles(), InputFiles(tmp_path / "inputs"), InputFiles(tmp_path / "inputs")):
        data = SOURCES[source](tmp_path, files)
        assert isinstance(data.inputs, LazyInputs)
        assert isinstance(data.test_inputs, LazyInputs)
        assert torch.equal(data.inputs[:], whole.inputs)
        assert torch.equal(data.test_inputs[:], whole.test_inputs)
        assert torch.equal(data.targets, whole.targets)
        assert data.units == whole.units
    assert len(list((tmp_path / "inputs").glob("*.inputs"))) == 2


@pytest.mark.parametrize("kind", ["int32", "int64", "float32"])
def test_tokens_stay_whole_numbers_and_numbers_stay_numbers(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).integers(0, 2**24, (60, 9)).astype(kind)
    columns = {"x": pa.array(list(values), pa.list_(pa.from_numpy_dtype(kind))), "label": LABELS}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=7)
    whole = from_parquet(tmp_path, InputFiles())
    monkeypatch.setattr(input_files, "LARGE_BYTES", 1)
    data = from_parquet(tmp_path, InputFiles(tmp_path / "inputs"))
    assert isinstance(data.inputs, LazyInputs)
    kept = data.to(torch.device("cpu"), torch.float64, keep_integers=True).inputs
    expected = torch.float64 if kind == "float32" else torch.int64
    assert kept[torch.tensor([3, 1])].dtype == expected
    assert torch.equal(data.inputs[:], whole.inputs)
    assert data.inputs.dtype == whole.inputs.dtype
    own = {path.stat().st_size // (9 * len(part)) for path, part in zip(
        sorted((tmp_path / "inputs").glob("*.inputs"), key=lambda path: -path.stat().st_size),
        (data.inputs, data.test_inputs), strict=True)}  # fmt: skip
    assert min(own) == np.dtype(kind).itemsize, "in the type that the source has"


def test_a_number_that_is_not_finite_is_named_in_a_file_too(
    tmp_path: Path, everything_is_large: None
) -> None:
    values = np.ones((60, 2), np.float32)
    values[17, 1] = np.inf
    pq.write_table(pa.table({"x": list(values), "label": LABELS}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"NaN or infinite values \(the first is sample 17\)"):
        from_parquet(tmp_path, InputFiles(tmp_path / "inputs"))


def config(folder: Path) -> RunConfig:
    return RunConfig.from_values(
        {
            "seed": 3,
            "data": {
                "source": "parquet",
                "path": str(folder / "a.parquet"),
                "unit": "user",
                "augment": [{"flip": {}}, {"noise": {"deviation": 0.1}}],
            },
            "training": {"epochs": 2, "batch_size": 12, "learning_rate": 0.1},
            "model": {"name": "mlp", "hidden": [4]},
        }
    )


def rows_of(run: RunDirectory) -> np.ndarray:
    precompute(run)
    store = ApproximatorStore.open(run.store_url)
    return store.read_rows_at(range(len(store.units)))


def test_a_run_on_lazy_inputs_has_the_same_bits_and_loses_its_files_when_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(monkeypatch, tmp_path)
    write_pictures(tmp_path)
    whole = train(config(tmp_path), tmp_path / "whole")
    expected = rows_of(whole)
    assert not (whole.path / "inputs").exists()
    in_memory = worker_bytes(whole.problem(), 0)
    monkeypatch.setattr(input_files, "LARGE_BYTES", 1)
    run = train(config(tmp_path), tmp_path / "run")
    assert run.digest() == whole.digest()
    # Whatever comes later decodes no picture again.
    monkeypatch.setattr(images, "decode", None)
    problem = run.problem()
    assert isinstance(problem.data.inputs, LazyInputs)
    assert worker_bytes(problem, 0) == in_memory - 4 * IMAGES_NHW.size
    assert np.array_equal(rows_of(run), expected)
    prune_run(run)
    assert not (run.path / "inputs").exists()


def test_features_of_lazy_inputs_are_those_of_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path)
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(30, 7))
    whole = featurise(from_parquet(tmp_path, InputFiles()), backbone, 2.0)
    monkeypatch.setattr(input_files, "LARGE_BYTES", 1)
    lazy = featurise(from_parquet(tmp_path, InputFiles(tmp_path / "inputs")), backbone, 2.0)
    assert torch.equal(lazy.inputs, whole.inputs)
    assert torch.equal(lazy.test_inputs, whole.test_inputs)


@pytest.mark.parametrize("has_run", [False, True])
def test_what_a_process_holds_for_want_of_a_run_is_counted(
    has_run: bool, tmp_path: Path, everything_is_large: None
) -> None:
    write_pictures(tmp_path)
    files = InputFiles(tmp_path / "inputs") if has_run else InputFiles()
    data = from_parquet(tmp_path, files)
    held = sum(map(bytes_without_file, (data.inputs, data.test_inputs)))
    assert held == (0 if has_run else IMAGES_NHW.nbytes)


def test_pictures_that_changed_after_the_training_are_refused(
    tmp_path: Path, everything_is_large: None
) -> None:
    write_pictures(tmp_path)
    run = train(config(tmp_path), tmp_path / "run")
    changed = [png(255 - image) for image in IMAGES_NHW]
    columns = {"image": changed, "label": LABELS, "user": USERS}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=7)
    with pytest.raises(DataError, match="the data are not those that"):
        run.problem()


def test_a_folder_of_something_else_gets_no_pictures(
    tmp_path: Path, everything_is_large: None
) -> None:
    write_pictures(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary").touch()
    with pytest.raises(ConfigError, match="is no run directory"):
        train(config(tmp_path), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["diary"]
