"""Finding a data source's files, and the error where they are missing."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.config import DataConfig
from pipeline.errors import DataError


def default_folder(source: str) -> Path:
    """Return the folder of a source's files where `data.path` names none: data/SOURCE."""
    return Path("data") / source


def configured_folder(config: DataConfig) -> Path:
    """Return `data.path`, or the default folder where it is null."""
    return Path(config.path) if config.path is not None else default_folder(config.source)


def source_folder(config: DataConfig, below: Sequence[str], marker: str) -> Path:
    """Return the first of `data.path` and its subfolders `below` that holds `marker`.

    Torchvision or the original archive puts the files into these subfolders. Where none holds
    `marker`, `data.path` itself is returned, for the message about missing files.
    """
    folder = configured_folder(config)
    for candidate in (folder, *(folder / name for name in below)):
        if (candidate / marker).exists():
            return candidate
    return folder


def read_text(path: Path) -> str:
    """Return the text of a file of a source.

    Raises:
        DataError: If it is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: {error}; fetch it again") from error


def require_files(source: str, folder: Path, names: Sequence[str]) -> None:
    """Check that all files (or folders) of a source are there.

    Raises:
        DataError: Naming the folder, every name expected, and those missing.
    """
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise DataError(
            f"source {source!r} expects these in {folder}: {', '.join(names)}; missing: "
            f"{', '.join(missing)}; `unlearn data fetch {source}` gets them or says where they are "
            "from; set data.path if they lie elsewhere"
        )
