"""Getting a source's files: downloaded where that is still allowed, else described."""

import shutil
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from torchvision import datasets
from torchvision.datasets.utils import download_and_extract_archive, download_url

from pipeline.data import SOURCES
from pipeline.data.adult import FILES as ADULT_FILES
from pipeline.data.celeba import FILES as CELEBA_FILES
from pipeline.data.cifar10 import DIGESTS as CIFAR10_DIGESTS
from pipeline.data.cifar10 import FOLDER as CIFAR10_FOLDER
from pipeline.data.files import default_folder
from pipeline.data.hapt import FILES as HAPT_FILES
from pipeline.data.mnist import FILES as IDX_FILES
from pipeline.data.obesity import FILE as OBESITY_FILE
from pipeline.errors import DataError
from pipeline.suggestions import nearest
from storage.durable_write import sync_folder


@dataclass(frozen=True)
class Download:
    """A source that can be downloaded.

    Attributes:
        files: What its folder holds afterwards.
        run: Fills an empty folder, or raises; checks the published digests.
    """

    files: tuple[str, ...]
    run: Callable[[Path], None]


@dataclass(frozen=True)
class ByHand:
    """A source that cannot be downloaded: which files its folder must hold, and where from."""

    files: tuple[str, ...]
    origin: str


def fetch(
    name: str, folder: Path | None = None, recipes: Mapping[str, Download | ByHand] | None = None
) -> Path:
    """Make sure that the files of source `name` are in `folder`, and return the folder.

    A download goes to a temporary folder beside it and is renamed when whole, so that nothing
    partial is left behind.

    Args:
        name: A data source.
        folder: Default data/NAME, where the source looks by itself.
        recipes: How each source is got; default `RECIPES`.

    Raises:
        DataError: If the source needs no files or has to be placed by hand (the message says
            which files, where and where from), or if the download failed.
    """
    recipes = RECIPES if recipes is None else recipes
    if name not in recipes:
        if name in SOURCES:
            raise DataError(
                f"source {name!r} needs no download: digits and wine ship with the program, arrays "
                "and parquet read your own files (set data.path)"
            )
        raise DataError(f"source {name!r} {nearest(name, recipes)}")
    recipe, folder = recipes[name], default_folder(name) if folder is None else folder
    if all((folder / file).exists() for file in recipe.files):
        return folder
    if isinstance(recipe, ByHand):
        raise DataError(
            f"source {name!r} cannot be downloaded by a program; put these into {folder}: "
            f"{', '.join(recipe.files)} ({recipe.origin})"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder} holds something else or part of {name} (expected: {', '.join(recipe.files)}); "
            "empty it, or choose another folder"
        )
    _download(name, folder, recipe)
    return folder


def _download(name: str, folder: Path, recipe: Download) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(
        tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent)
    )
    try:
        recipe.run(partial)
        missing = [file for file in recipe.files if not (partial / file).exists()]
        if missing:
            raise DataError(f"the download of {name} brought no {', '.join(missing)}; try again")
        partial.chmod(0o755)  # mkdtemp's folder is closed to others
        partial.replace(folder)
    except (OSError, RuntimeError, HTTPException, tarfile.TarError) as error:
        raise DataError(
            f"{name} could not be downloaded: {error}; try again later, or put these into {folder} "
            f"by hand: {', '.join(recipe.files)}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(folder.parent)


def _idx_files(source: type[datasets.MNIST]) -> Download:
    """Return the recipe for the gzipped files that torchvision knows, mirror by mirror."""

    def run(folder: Path) -> None:
        for file, digest in source.resources:
            *mirrors, last = (mirror + file for mirror in source.mirrors)
            for url in mirrors:
                try:
                    download_url(url, folder, file, digest)
                    break
                except (OSError, RuntimeError, HTTPException):
                    (folder / file).unlink(missing_ok=True)
            else:
                download_url(last, folder, file, digest)

    return Download(tuple(f"{file}.gz" for file in IDX_FILES), run)


def _cifar_batches(folder: Path) -> None:
    source = datasets.CIFAR10
    download_and_extract_archive(source.url, folder, filename=source.filename, md5=source.tgz_md5)
    (folder / source.filename).unlink()


RECIPES: Mapping[str, Download | ByHand] = {
    "mnist": _idx_files(datasets.MNIST),
    "fashion-mnist": _idx_files(datasets.FashionMNIST),
    "cifar10": Download(
        tuple(f"{CIFAR10_FOLDER}/{file}" for file in CIFAR10_DIGESTS), _cifar_batches
    ),
    "celeba": ByHand(
        CELEBA_FILES,
        "from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, folders Anno, Eval and Img; unpack "
        "img_align_celeba.zip, MD5 00d2c5bc6d35e252742224ab0c1e8fcb",
    ),
    "lfw": ByHand(
        ("lfw",),
        "lfw.tgz unpacked, 13,233 photos in a folder per person, MD5 "
        "a17d05bd522c52d84eca14327a23d494; for instance from https://ndownloader.figshare.com/files/"
        "5976018",
    ),
    "adult": ByHand(ADULT_FILES, "adult.zip from https://archive.ics.uci.edu/dataset/2"),
    "obesity": ByHand((OBESITY_FILE,), "from the zip of https://archive.ics.uci.edu/dataset/544"),
    "hapt": ByHand(
        HAPT_FILES, "folders Train and Test of the zip of https://archive.ics.uci.edu/dataset/341"
    ),
}
"""How each source with files is got. Digests are those torchvision carries."""
