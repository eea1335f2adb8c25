"""The files of a Parquet data set: found, opened, and put in the order in which rows are counted."""

import fsspec
import pyarrow as pa
from pyarrow import dataset as arrow

from pipeline.config import DataConfig
from pipeline.errors import DataError
from pipeline.suggestions import named
from storage.masking import masked

SCHEMES = ("file", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https", "memory")
SUFFIXES = (".parquet", ".parq", ".pq")


def open_files(config: DataConfig) -> arrow.Dataset:
    """Return the Parquet data set that `data.path` names.

    Raises:
        DataError: If Parquet is not read from there, or cannot be; no message holds credentials.
    """
    if config.path is None:
        raise DataError(
            "source 'parquet' needs data.path: a Parquet file or a folder of them, here or at a URL"
        )
    shown = masked(config.path)
    _refuse_strange_scheme(config.path)
    try:
        filesystem, path = fsspec.core.url_to_fs(config.path)
        if not filesystem.exists(path):
            raise DataError(f"{shown} does not exist; data.path must name a Parquet file")
        files = _files(filesystem, path, shown)
        return arrow.dataset(files, filesystem=filesystem, format="parquet")
    except ImportError as error:
        raise DataError(f"{shown} needs another package: {one_line(error)}") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{shown} cannot be read as Parquet: {one_line(error)}; it may be half downloaded"
        ) from error
    except DataError:
        raise
    except Exception as error:
        # The libraries behind remote schemes raise errors of their own, of no common base.
        raise DataError(f"{shown} cannot be opened: {one_line(error)}") from error


def states_of(source: arrow.Dataset) -> list[str]:
    """Return path, size and time of each file; no time where its file system tells none."""
    return [
        f"{info.path} {info.size} {info.mtime_ns}"
        for info in source.filesystem.get_file_info(source.files)
    ]


def _refuse_strange_scheme(location: str) -> None:
    """Refuse what is no file: fsspec also knows chains and schemes that run or redirect requests."""
    scheme = location.partition("://")[0] if "://" in location else "file"
    if "::" in location or scheme not in SCHEMES:
        raise DataError(
            f"data.path {masked(location)!r:.200} is no path that Parquet is read from; expected a "
            f"path on this machine, or a URL of {', '.join(SCHEMES)}"
        )


def _files(filesystem: fsspec.AbstractFileSystem, path: str, shown: str) -> list[str]:
    """Return the files to read, in the order in which their rows are counted: by path, as text."""
    if not filesystem.isdir(path):
        return [path]
    found = sorted(filesystem.find(path))
    names = {file: file.removeprefix(path).strip("/") for file in found}
    # As elsewhere: names that begin so are no data, but what writers keep beside them.
    kept = [
        file
        for file, name in names.items()
        if name.lower().endswith(SUFFIXES)
        and not any(part.startswith((".", "_")) for part in name.split("/"))
    ]
    if not kept:
        others = named(list(names.values())) or "nothing"
        raise DataError(f"{shown} holds no .parquet file (found: {others}); name another folder")
    return kept


def one_line(error: Exception) -> str:
    """Return the beginning of an error's message, in one line and without credentials."""
    return masked(" ".join(str(error).split()))[:300]
