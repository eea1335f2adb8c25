"""MNIST and FashionMNIST from small IDX files; what all sources say of missing files."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data import SOURCES, DataConfig, load
from pipeline.data.mnist import FILES
from pipeline.errors import ConfigError, DataError


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, packed: bool, num_train: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Write both parts and return the training images and labels."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for count, names in ((num_train, FILES[:2]), (20, FILES[2:])):
        images = generator.integers(0, 256, (count, 28, 28))
        labels = np.arange(count) % 10
        parts += [images, labels]
        for name, array in zip(names, (images, labels), strict=True):
            content = idx(array)
            name, content = (f"{name}.gz", gzip.compress(content)) if packed else (name, content)
            (folder / name).write_bytes(content)
    return parts[0], parts[1]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", ["", "MNIST/raw"])
def test_mnist_is_read_from_idx(tmp_path: Path, packed: bool, below: str) -> None:
    images, labels = write_mnist(tmp_path / below, packed)
    data = load(DataConfig(source="mnist", path=str(tmp_path)), seed=0)
    expected = (images[:, None] / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(data.inputs.numpy(), expected, atol=1e-6)
    assert data.inputs.dtype == torch.float32
    assert data.targets.tolist() == labels.tolist()
    assert (data.num_classes, len(data.test_targets)) == (10, 20)


def test_fashion_mnist_has_its_own_scale(tmp_path: Path) -> None:
    images, _ = write_mnist(tmp_path, packed=True)
    data = load(DataConfig(source="fashion-mnist", path=str(tmp_path)), seed=0)
    np.testing.assert_allclose(data.inputs.numpy(), images[:, None] / 127.5 - 1, atol=1e-6)


def test_images_of_one_channel_are_not_taken_for_channels_last() -> None:
    data = load(DataConfig(source="digits"), seed=0)
    assert data.inputs.stride() == data.test_inputs.stride() == (64, 64, 8, 1)


def test_training_samples_are_drawn_by_seed(tmp_path: Path) -> None:
    images, _ = write_mnist(tmp_path, packed=False, num_train=200)
    config = DataConfig(source="mnist", path=str(tmp_path), num_train=100)
    first, again, other = (load(config, seed) for seed in (3, 3, 4))
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, other.inputs)
    assert torch.equal(first.test_inputs, other.test_inputs)
    whole = ((images / 255 - 0.1307) / 0.3081).reshape(200, -1).astype(np.float32)
    drawn = first.inputs.numpy().reshape(100, -1)
    nearest = [int(np.abs(whole - row).sum(axis=1).argmin()) for row in drawn]
    assert len(set(nearest)) == 100
    np.testing.assert_allclose(whole[nearest], drawn, atol=1e-6)


@pytest.mark.parametrize("packed", [True, False])
def test_half_downloaded_idx_file_is_named_with_its_size(tmp_path: Path, packed: bool) -> None:
    write_mnist(tmp_path, packed)
    path = tmp_path / (FILES[0] + ".gz" * packed)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"{FILES[0]}.*{len(content) // 2} bytes.*half downloaded"):
        load(DataConfig(source="mnist", path=str(tmp_path)), seed=0)


def test_idx_of_another_type_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path, packed=False)
    (tmp_path / FILES[1]).write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="no IDX file"):
        load(DataConfig(source="mnist", path=str(tmp_path)), seed=0)


def test_images_and_labels_must_agree(tmp_path: Path) -> None:
    write_mnist(tmp_path, packed=False)
    (tmp_path / FILES[1]).write_bytes(idx(np.zeros(39)))
    with pytest.raises(DataError, match=r"train files hold images of shape \(40, 28, 28\)"):
        load(DataConfig(source="mnist", path=str(tmp_path)), seed=0)


def test_class_missing_from_a_split_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path, packed=False)
    (tmp_path / FILES[3]).write_bytes(idx(np.arange(20) % 7))
    with pytest.raises(DataError, match=r"test part \(20 samples\) has none of class 7, 8, 9"):
        load(DataConfig(source="mnist", path=str(tmp_path)), seed=0)


WITH_FILES = {
    "adult": ["adult.data", "adult.test"],
    "celeba": ["list_attr_celeba.txt", "identity_CelebA.txt", "img_align_celeba"],
    "cifar10": ["data_batch_1", "data_batch_5", "test_batch"],
    "fashion-mnist": [FILES[0], FILES[3]],
    "hapt": ["Train/X_train.txt", "Test/subject_id_test.txt"],
    "lfw": ["lfw"],
    "mnist": [FILES[0], FILES[3]],
    "obesity": ["ObesityDataSet_raw_and_data_sinthetic.csv"],
}


@pytest.mark.parametrize("source", sorted(WITH_FILES))
def test_missing_files_are_listed_with_their_folder(tmp_path: Path, source: str) -> None:
    folder = tmp_path / "absent" / "lfw" if source == "lfw" else tmp_path / "absent"
    with pytest.raises(DataError) as caught:
        load(DataConfig(source=source, path=str(folder)), seed=0)
    for word in (str(tmp_path / "absent"), f"unlearn data fetch {source}", *WITH_FILES[source]):
        assert word in str(caught.value)


def test_every_source_with_files_is_covered() -> None:
    assert set(SOURCES) == {*WITH_FILES, "arrays", "diabetes", "digits", "parquet", "wine"}
    with pytest.raises(ConfigError, match="did you mean 'cifar10'"):
        load(DataConfig(source="cifar-10"), seed=0)


@pytest.mark.parametrize("size", [(0, 28), (14, 28)])
def test_images_of_two_sizes_are_refused(size: tuple[int, int], tmp_path: Path) -> None:
    write_mnist(tmp_path, packed=False)
    (tmp_path / FILES[0]).write_bytes(idx(np.zeros((40, *size))))
    with pytest.raises(DataError, match="expected one size of at least one pixel"):
        load(DataConfig(source="mnist", path=str(tmp_path)), 1)
