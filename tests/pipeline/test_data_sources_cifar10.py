"""CIFAR-10 from batches pickled as Python 2 did, and what guards the unpickler."""

import hashlib
import pickle
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from pipeline.data import DataConfig, load
from pipeline.data.cifar10 import CLASSES, DIGESTS, PlainUnpickler, cifar10
from pipeline.errors import DataError


def short_string(text: bytes) -> bytes:
    return b"U" + bytes((len(text),)) + text


def long_string(text: bytes) -> bytes:
    return b"T" + struct.pack("<I", len(text)) + text


def array_pickle(
    pixels: np.ndarray, rebuilder: bytes = b"numpy.core.multiarray\n_reconstruct"
) -> bytes:
    """Return the opcodes with which NumPy under Python 2 pickled an array of bytes."""
    dtype = b"cnumpy\ndtype\n" + short_string(b"u1") + b"K\0K\1\x87R"
    dtype += b"(K\3" + short_string(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\0tb"
    shape = b"".join(b"M" + struct.pack("<H", side) for side in pixels.shape)
    empty = b"c" + rebuilder + b"\ncnumpy\nndarray\nK\0\x85" + short_string(b"b") + b"\x87R"
    state = b"(K\1(" + shape + b"t" + dtype + b"\x89" + long_string(pixels.tobytes()) + b"t"
    return empty + state + b"b"


def batch_pickle(pixels: np.ndarray, labels: list[int], **keywords: bytes) -> bytes:
    """Return a batch as the published files are: a protocol 2 dictionary of byte strings."""
    numbers = b"".join(b"K" + bytes((label,)) for label in labels)
    entries = short_string(b"batch_label") + short_string(b"training batch 1 of 5")
    entries += short_string(b"labels") + b"](" + numbers + b"e"
    entries += short_string(b"data") + array_pickle(pixels, **keywords)
    return b"\x80\2}(" + entries + b"u."


def write_cifar(folder: Path) -> tuple[dict[str, str], np.ndarray, list[int]]:
    """Write six batches; return their digests, and pixels and labels of the training part."""
    generator = np.random.default_rng(1)
    folder.mkdir(parents=True)
    digests, pixels, labels = {}, [], []
    for name in DIGESTS:
        batch = generator.integers(0, 256, (20, 3072), dtype=np.uint8)
        numbers = generator.permutation(np.arange(20) % 10).tolist()
        content = batch_pickle(batch, numbers)
        (folder / name).write_bytes(content)
        digests[name] = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if not name.startswith("test"):
            pixels.append(batch)
            labels += numbers
    return digests, np.concatenate(pixels), labels


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_cifar10_is_read_from_python_2_pickles(tmp_path: Path, below: str) -> None:
    digests, pixels, labels = write_cifar(tmp_path / "cifar" / below)
    config = DataConfig(source="cifar10", path=str(tmp_path / "cifar"))
    data = cifar10(config, 0, digests)
    mean, deviation = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
    expected = pixels.reshape(-1, 3, 32, 32) / 255
    expected = (expected - mean[:, None, None]) / deviation[:, None, None]
    np.testing.assert_allclose(data.inputs.numpy(), expected, atol=1e-5)
    assert data.targets.tolist() == labels
    assert (len(data.test_targets), data.num_classes) == (20, 10)
    fewer = cifar10(config.model_copy(update={"num_train": 60}), 0, digests)
    assert fewer.num_samples == 60


def test_cifar10_constants_are_torchvisions() -> None:
    published = dict(datasets.CIFAR10.train_list + datasets.CIFAR10.test_list)
    assert published == dict(DIGESTS)
    assert len(CLASSES) == 10


def test_cifar10_batch_with_another_digest_is_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path / "c")
    monkeypatch.setattr(PlainUnpickler, "load", lambda self: pytest.fail("was unpickled"))
    with pytest.raises(DataError, match=r"data_batch_1 \(\d+ bytes\) has MD5 .* c99cafc15"):
        load(DataConfig(source="cifar10", path=str(tmp_path / "c")), seed=0)


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_unpickler_runs_nothing_even_behind_the_right_digest(tmp_path: Path, protocol: int) -> None:
    digests, _, _ = write_cifar(tmp_path / "c")
    marker = tmp_path / "touched"
    content = pickle.dumps({"data": Attack(marker), "labels": []}, protocol)
    (tmp_path / "c" / "data_batch_1").write_bytes(content)
    digests["data_batch_1"] = hashlib.md5(content, usedforsecurity=False).hexdigest()
    with pytest.raises(DataError, match="no batch of plain arrays: it asks for"):
        cifar10(DataConfig(source="cifar10", path=str(tmp_path / "c")), 0, digests)
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists(), "the attack itself must work, or the test proves nothing"


@pytest.mark.parametrize("name", ["numpy.core.multiarray\nscalar", "builtins\neval", "os\nsystem"])
def test_unpickler_refuses_all_but_three_names(name: str) -> None:
    content = array_pickle(np.zeros((1, 2), np.uint8), rebuilder=name.encode())
    with pytest.raises(pickle.UnpicklingError, match=name.replace("\n", ".")):
        PlainUnpickler(BytesIO(b"\x80\2" + content + b".")).load()


def test_cifar10_file_of_another_content_is_refused(tmp_path: Path) -> None:
    digests, _, _ = write_cifar(tmp_path / "c")
    content = pickle.dumps({"data": [1, 2], "labels": [0]}, 2)
    (tmp_path / "c" / "test_batch").write_bytes(content)
    digests["test_batch"] = hashlib.md5(content, usedforsecurity=False).hexdigest()
    with pytest.raises(DataError, match="test_batch is no CIFAR-10 batch"):
        cifar10(DataConfig(source="cifar10", path=str(tmp_path / "c")), 0, digests)
