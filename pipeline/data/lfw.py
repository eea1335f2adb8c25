"""Labeled Faces in the Wild: whose face is it, among people with 30 to 100 photos?"""

# n photos

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.dataset import Dataset, assemble
from pipeline.data.files import configured_folder, require_files
from pipeline.data.images import DECODER, IMAGENET, as_pictures, central_square, stack
from pipeline.data.input_files import IN_MEMORY, InputFiles, state_of
from pipeline.data.samples import Samples, require_every_class, split_positions
from pipeline.errors import DataError

FEWEST, MOST = 30, 100
# The paper keeps the middle 224 of 250 pixels; its random rotations cannot be replayed.
SIDE, SHARE = 224, 224 / 250

# Where the published archives and torchvision put the people's folders, below data.path.
_FOLDERS = tuple(
    above + name
    for above in ("", "lfw-py/")
    for name in ("lfw", "lfw_funneled", "lfw-deepfunneled")
)


def lfw(config: DataConfig, seed: int, files: InputFiles = IN_MEMORY) -> Dataset:
    """1,230 photos of 29 people as (n, 3, 224, 224), ImageNet's normalisation; 29 classes.

    A class is a person, in alphabetical order. With `unit: sample` a unit is one photo, as in the
    paper. With `unit: user` it is a person, whose deletion leaves its class without samples: the
    model keeps an output that nothing trains.
    """
    folder = configured_folder(config)
    folder = next((folder / name for name in _FOLDERS if (folder / name).is_dir()), folder)
    if not folder.is_dir():
        require_files(config.source, folder.parent, (folder.name,))
    photos = {
        person.name: _photos(person) for person in sorted(folder.iterdir()) if person.is_dir()
    }
    photos = {name: paths for name, paths in photos.items() if FEWEST <= len(paths) <= MOST}
    if len(photos) < 2:
        raise DataError(
            f"{folder} holds {len(photos)} people with {FEWEST} to {MOST} photos, at least 2 are "
            "needed; expected a folder per person with photos Person_Name_0001.jpg and so on "
            "(lfw.tgz unpacked)"
        )
    paths = [path for of_person in photos.values() for path in of_person]
    owners = [name for name, of_person in photos.items() for _ in of_person]
    train, test = (
        replace(
            _samples([paths[i] for i in rows], [owners[i] for i in rows], tuple(photos), files),
            rows=rows,
            num_rows=len(paths),
        )
        for rows in split_positions(len(paths), config, seed)
    )
    require_every_class(train, test, tuple(photos))
    return assemble(train, test, config, len(photos))


def _samples(
    paths: list[Path], owners: list[str], people: tuple[str, ...], files: InputFiles
) -> Samples:
    pictures = ((str(path), path.read_bytes()) for path in paths)
    images = files.kept(
        ("lfw", DECODER, SHARE, SIDE, *map(state_of, paths)),
        partial(stack, pictures, range(len(paths)), central_square(SHARE, SIDE)),
    )
    targets = np.array([people.index(owner) for owner in owners], dtype=np.int64)
    return Samples(as_pictures(images, *IMAGENET), targets, tuple(owners))


def _photos(folder: Path) -> list[Path]:
    """Return a person's photos in order.

    Raises:
        DataError: If the numbers have a gap.
    """
    pattern = re.compile(rf"{re.escape(folder.name)}_([0-9]{{4}})\.jpg")
    photos = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
    if photos and int(photos[-1].stem[-4:]) != len(photos):
        raise DataError(
            f"{folder} holds {len(photos)} photos, but the last is {photos[-1].name}; some are "
            "missing: unpack the archive again"
        )
    return photos
