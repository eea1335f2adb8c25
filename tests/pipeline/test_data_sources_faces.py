"""CelebA and LFW from small files in their original formats."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import DataConfig, load
from pipeline.errors import DataError


def jpeg(width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


PEOPLE = {"Ada_Few": 29, "Ann_First": 30, "Ben_Second": 33, "Zoe_Many": 101}


def write_lfw(folder: Path) -> None:
    for place, (name, count) in enumerate(PEOPLE.items()):
        (folder / name).mkdir(parents=True)
        content = jpeg(250, 250, (60 * place, 0, 0))
        for number in range(1, count + 1):
            (folder / name / f"{name}_{number:04d}.jpg").write_bytes(content)
    (folder / "pairs_01.txt").write_text("not a person")


@pytest.fixture(scope="module")
def lfw_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    write_lfw(folder / "lfw")
    return folder


@pytest.mark.parametrize("unit", ["sample", "user"])
def test_lfw_keeps_people_with_30_to_100_photos(lfw_folder: Path, unit: str) -> None:
    config = DataConfig.model_validate({"source": "lfw", "path": str(lfw_folder), "unit": unit})
    data = load(config, seed=1)
    assert data.inputs.shape == (50, 3, 224, 224)
    assert len(data.test_targets) == 13
    assert data.num_classes == 2
    red = (data.inputs[:, 0] * 0.229 + 0.485).mean(dim=(1, 2)) * 255
    assert torch.equal(data.targets, (red > 90).long()), (
        "Ann (red 60) is class 0, Ben (120) class 1"
    )
    if unit == "user":
        assert data.units == ("Ann_First", "Ben_Second")
        assert torch.equal(data.unit_of_sample, data.targets)


def test_lfw_photo_missing_from_the_middle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "Ann").mkdir()
    for number in (*range(1, 31), 32):
        (tmp_path / "Ann" / f"Ann_{number:04d}.jpg").touch()
    with pytest.raises(DataError, match=r"holds 31 photos, but the last is Ann_0032\.jpg"):
        load(DataConfig(source="lfw", path=str(tmp_path)), seed=0)


def test_lfw_without_enough_people_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 0 people with 30 to 100 photos"):
        load(DataConfig(source="lfw", path=str(tmp_path)), seed=0)


NUM_PHOTOS = 24
NAMES = [f"{number:06d}.jpg" for number in range(1, NUM_PHOTOS + 1)]


def is_male(place: int) -> bool:
    return place % 3 == 0


def write_celeba(folder: Path) -> None:
    """Write 24 photos, grey values 10 a step: 12 train, 4 validate, 8 test; 5 people."""
    (folder / "img_align_celeba").mkdir(parents=True)
    attributes = [str(NUM_PHOTOS), "5_o_Clock_Shadow Male Young"]
    identities, partition = [], []
    for place, name in enumerate(NAMES):
        picture = jpeg(178, 218, (10 * place,) * 3)
        (folder / "img_align_celeba" / name).write_bytes(picture)
        attributes.append(f"{name} -1  {1 if is_male(place) else -1} -1")
        identities.append(f"{name} {2880 + place % 5}")
        partition.append(f"{name} {0 if place < 12 else 1 if place < 16 else 2}")
    (folder / "list_attr_celeba.txt").write_text("\n".join(attributes) + "\n")
    (folder / "identity_CelebA.txt").write_text("\n".join(identities) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")


def greys(images: torch.Tensor) -> list[int]:
    """Return the place of each photo, from its grey value."""
    values = (images[:, 1] * 0.224 + 0.456).mean(dim=(1, 2)) * 25.5
    return values.round().int().tolist()


@pytest.mark.parametrize("below", ["", "celeba"])
def test_celeba_reads_gender_identity_and_partition(tmp_path: Path, below: str) -> None:
    write_celeba(tmp_path / below)
    config = DataConfig(source="celeba", path=str(tmp_path), unit="user", test_fraction=0.4)
    data = load(config, seed=0)
    assert data.inputs.shape == (12, 3, 128, 128)
    assert greys(data.inputs) == list(range(12)), "the published training part, in its order"
    assert data.targets.tolist() == [int(is_male(place)) for place in range(12)]
    assert data.units == ("2880", "2881", "2882", "2883", "2884")
    assert data.unit_of_sample.tolist() == [place % 5 for place in range(12)]
    assert len(data.test_targets) == 8
    assert greys(data.test_inputs) == list(range(16, 24)), "the published test part"


def test_celeba_reads_only_what_is_needed(tmp_path: Path) -> None:
    write_celeba(tmp_path)
    config = DataConfig(source="celeba", path=str(tmp_path), num_train=9, test_fraction=0.4)
    data = load(config, seed=1)
    assert (data.num_samples, len(data.test_targets)) == (9, 6)
    used = {NAMES[place] for place in greys(data.inputs) + greys(data.test_inputs)}
    for name in set(NAMES) - used:
        (tmp_path / "img_align_celeba" / name).unlink()
    again = load(config, seed=1)
    assert torch.equal(again.inputs, data.inputs)
    assert torch.equal(again.test_inputs, data.test_inputs)


def test_celeba_keeps_the_middle_square(tmp_path: Path) -> None:
    write_celeba(tmp_path)
    picture = np.zeros((218, 178, 3), np.uint8)
    picture[20:198] = 255  # the rows of the middle square; nothing else may show
    Image.fromarray(picture).save(tmp_path / "img_align_celeba" / NAMES[0], quality=100)
    data = load(DataConfig(source="celeba", path=str(tmp_path)), seed=0)
    brightness = data.inputs[0, 0] * 0.229 + 0.485
    assert float(brightness[1:-1].min()) > 0.97


def damage(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "identity_CelebA.txt",
            "000003.jpg",
            "../../etc.jpg",
            "line 3 names photo '../../etc.jpg'",
        ),
        ("identity_CelebA.txt", "000003.jpg", "0000003.jpg", "names are six digits"),
        ("list_attr_celeba.txt", "000002.jpg", "/etc/passwd", "line 4 names photo '/etc/passwd'"),
        (
            "list_attr_celeba.txt",
            "24\n",
            "202599\n",
            "lists 24 photos, its first line promises 202599",
        ),
        ("list_attr_celeba.txt", "Male", "Female", "does not begin with the number of photos"),
        ("list_attr_celeba.txt", "000002.jpg -1  -1 -1", "000002.jpg -1  -1", "line 4 is not"),
        ("list_eval_partition.txt", "000024.jpg 2\n", "", "lists 23 photos"),
        ("list_eval_partition.txt", "000024.jpg 2\n", "000024.jpg\n", "line 24 is '000024.jpg'"),
    ],
)
def test_damaged_celeba_list_is_named(
    tmp_path: Path, name: str, old: str, new: str, message: str
) -> None:
    write_celeba(tmp_path)
    damage(tmp_path / name, old, new)
    with pytest.raises(DataError, match=message) as caught:
        load(DataConfig(source="celeba", path=str(tmp_path)), seed=0)
    assert name in str(caught.value)


def test_half_downloaded_photo_is_named_with_its_size(tmp_path: Path) -> None:
    write_celeba(tmp_path)
    path = tmp_path / "img_align_celeba" / "000005.jpg"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"000005\.jpg \(700 bytes\) is no whole"):
        load(DataConfig(source="celeba", path=str(tmp_path)), seed=0)


def test_missing_photo_is_named(tmp_path: Path) -> None:
    write_celeba(tmp_path)
    (tmp_path / "img_align_celeba" / "000005.jpg").unlink()
    with pytest.raises(DataError, match=r"000005\.jpg is missing"):
        load(DataConfig(source="celeba", path=str(tmp_path)), seed=0)


def test_photos_of_mixed_sizes_are_refused(tmp_path: Path) -> None:
    write_celeba(tmp_path)
    (tmp_path / "img_align_celeba" / "000005.jpg").write_bytes(jpeg(100, 120, (0, 0, 0)))
    message = r"000005\.jpg is 100x120 RGB, but .*000001\.jpg is 178x218 RGB"
    with pytest.raises(DataError, match=message):
        load(DataConfig(source="celeba", path=str(tmp_path)), seed=0)


def test_celeba_part_without_a_gender_is_refused(tmp_path: Path) -> None:
    write_celeba(tmp_path)
    config = DataConfig(source="celeba", path=str(tmp_path), num_train=1)
    with pytest.raises(DataError, match="has none of class"):
        load(config, seed=0)
