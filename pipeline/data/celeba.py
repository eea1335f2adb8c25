"""CelebA: the attribute Male; units by the published identities."""

# n photos

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.dataset import Dataset, assemble
from pipeline.data.files import read_text, require_files, source_folder
from pipeline.data.images import DECODER, IMAGENET, as_pictures, central_square, stack
from pipeline.data.input_files import IN_MEMORY, InputFiles, state_of
from pipeline.data.samples import Samples, require_every_class, training_positions
from pipeline.errors import DataError

ATTRIBUTES, IDENTITIES = "list_attr_celeba.txt", "identity_CelebA.txt"
PARTITION, PHOTOS = "list_eval_partition.txt", "img_align_celeba"
FILES = (ATTRIBUTES, IDENTITIES, PARTITION, PHOTOS)

CLASSES = ("female", "male")
SIDE = 128

_TRAINING, _TEST = "0", "2"


def celeba(config: DataConfig, seed: int, files: InputFiles = IN_MEMORY) -> Dataset:
    """Photos of faces as (n, 3, 128, 128), ImageNet's normalisation; 2 classes.

    The middle square of a photo is resized, where the paper squeezes the whole to a square. With
    `unit: user`, a unit is a person and owns all its training photos.

    Only what is needed is read: the training photos, and a share of the published test part that
    makes `test_fraction` of both together (at most all of it).
    """
    folder = source_folder(config, ("celeba",), ATTRIBUTES)
    require_files(config.source, folder, FILES)
    attributes = _genders(folder / ATTRIBUTES)
    identities, partition = _list(folder / IDENTITIES), _list(folder / PARTITION)
    for name, listed in ((IDENTITIES, identities), (PARTITION, partition)):
        if listed.keys() != attributes.keys():
            raise DataError(
                f"{folder / name} lists {len(listed)} photos, {folder / ATTRIBUTES} "
                f"{len(attributes)}; they must list the same: one is cut short, fetch it again"
            )
    names = np.array(list(attributes))
    train_rows, test_rows = (
        np.array([row for row, name in enumerate(names) if partition[name] == part], dtype=np.int64)
        for part in (_TRAINING, _TEST)
    )
    train_rows = train_rows[training_positions(len(train_rows), config, seed)]
    test_rows = _test_share(test_rows, len(train_rows), config, seed)
    train, test = (
        replace(
            _samples(folder / PHOTOS, names[rows], attributes, identities, files),
            rows=rows,
            num_rows=len(names),
        )
        for rows in (train_rows, test_rows)
    )
    require_every_class(train, test, CLASSES)
    return assemble(train, test, config, len(CLASSES))


def _test_share(rows: np.ndarray, num_train: int, config: DataConfig, seed: int) -> np.ndarray:
    wanted = round(num_train * config.test_fraction / (1 - config.test_fraction))
    order = np.random.default_rng([seed, 2]).permutation(len(rows))
    return rows[np.sort(order[: max(1, wanted)])]


def _samples(
    folder: Path,
    names: np.ndarray,
    genders: dict[str, int],
    identities: dict[str, str],
    files: InputFiles,
) -> Samples:
    images = files.kept(
        ("celeba", DECODER, SIDE, *(_photo_state(folder / name) for name in names)),
        partial(stack, _photos(folder, names), range(len(names)), central_square(1, SIDE)),
    )
    targets = np.array([genders[name] for name in names], dtype=np.int64)
    owners = tuple(identities[name] for name in names)
    return Samples(as_pictures(images, *IMAGENET), targets, owners)


def _photo_state(path: Path) -> str:
    try:
        return state_of(path)
    except FileNotFoundError as error:
        raise _missing(path) from error


def _missing(path: Path) -> DataError:
    return DataError(
        f"{path} is missing, though {ATTRIBUTES} lists it; unpack img_align_celeba.zip again"
    )


def _photos(folder: Path, names: np.ndarray) -> Iterator[tuple[str, bytes]]:
    for name in names:
        path = folder / name
        try:
            yield str(path), path.read_bytes()
        except FileNotFoundError as error:
            raise _missing(path) from error


def _genders(path: Path) -> dict[str, int]:
    """Return 1 for each photo of a man, 0 for others, in the list's order.

    The list: the number of photos, the names of the attributes, then a line per photo of its name and
    1 or -1 for each attribute.
    """
    lines = read_text(path).splitlines()
    header = lines[1].split() if len(lines) > 1 else []
    if not lines[:1] or not re.fullmatch(r"[0-9]{1,9}", lines[0].strip()) or "Male" not in header:
        raise DataError(
            f"{path} does not begin with the number of photos and the attributes' names, Male among "
            "them; fetch it again"
        )
    expected, rows = int(lines[0]), lines[2:]
    if len(rows) != expected:
        raise DataError(
            f"{path} lists {len(rows)} photos, its first line promises {expected}; it is damaged or "
            "half downloaded, fetch it again"
        )
    column = header.index("Male") + 1
    genders = {}
    for number, row in enumerate(rows, start=3):
        name, *values = row.split() or [""]
        if len(values) != len(header) or values[column - 1] not in ("-1", "1"):
            raise DataError(
                f"{path} line {number} is not a photo's name and {len(header)} values of -1 or 1; "
                "fetch it again"
            )
        genders[_checked(path, number, name)] = int(values[column - 1] == "1")
    return genders


def _list(path: Path) -> dict[str, str]:
    """Return what a list of lines "photo number" says about each photo."""
    entries = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        name, *values = line.split() or [""]
        if len(values) != 1 or not re.fullmatch(r"[0-9]{1,9}", values[0]):
            raise DataError(
                f"{path} line {number} is {line[:60]!r}, expected a photo's name and a number; fetch "
                "it again"
            )
        entries[_checked(path, number, name)] = values[0]
    return entries


def _checked(path: Path, line: int, name: str) -> str:
    """Return a photo's name if it can be nothing but a file in the photos' folder."""
    if not re.fullmatch(r"[0-9]{6}\.jpg", name):
        raise DataError(
            f"{path} line {line} names photo {name[:60]!r}; names are six digits and .jpg"
        )
    return name
