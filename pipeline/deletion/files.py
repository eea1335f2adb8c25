"""Where the files of releases lie in a run directory, and how they are written.

    ledger.sqlite, ledger.lock
    internal/                               mode 0700, never published
        weighted-sum-<k>.safetensors        S after release k, float64 (P,), mode 0600; with class
                                            terms also the mass deleted of each class, int64 (C,)
        staged-<k>/                         release k until it is published
    releases/<k>/                           model.safetensors, certificate.json, certificate.txt
    receipts/<pseudonym>.json               signed receipts, by request, mode 0600

Everything is written beside its place, fsynced, and renamed into it.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pipeline.deletion.class_terms import Masses
from pipeline.deletion.context import DeletionContext
from pipeline.deletion.weights import Float64Array
from pipeline.errors import DamagedRunError
from pipeline.tensor_file import header
from storage.durable_write import (
    file_digest,
    make_shared_folder,
    shared_mode,
    sync_folder,
    write_durably,
)

MODEL_FILE = "model.safetensors"
CERTIFICATE_FILE = "certificate.json"
CERTIFICATE_TEXT_FILE = "certificate.txt"


@dataclass(frozen=True)
class ReleasePaths:
    """The paths of a run directory that deletions use."""

    root: Path

    @property
    def ledger(self) -> Path:
        """The SQLite file."""
        return self.root / "ledger.sqlite"

    @property
    def lock(self) -> Path:
        """The file that one process at a time locks."""
        return self.root / "ledger.lock"

    @property
    def internal(self) -> Path:
        """What the operator keeps private."""
        return self.root / "internal"

    @property
    def releases(self) -> Path:
        """What may be published."""
        return self.root / "releases"

    @property
    def receipts(self) -> Path:
        """Signed receipts, which can be made again at any time."""
        return self.root / "receipts"

    def staged(self, release: int) -> Path:
        """Where release k is made."""
        return self.internal / f"staged-{release}"

    def published(self, release: int) -> Path:
        """Where release k ends up."""
        return self.releases / str(release)

    def weighted_sum(self, release: int) -> Path:
        """The noise-free sum after release k."""
        return self.internal / f"weighted-sum-{release}.safetensors"

    @property
    def restored(self) -> Path:
        """Where a backup is checked before it takes the ledger's place."""
        return self.internal / "restored"

    def create(self) -> None:
        """Make the two folders."""
        self.internal.mkdir(mode=0o700, exist_ok=True)
        make_shared_folder(self.releases)

    def sweep(self, kept_release: int | None) -> None:
        """Remove what no release needs: staged files, and every sum but the one to keep."""
        for path in (*self.internal.glob("staged-*"), *self.internal.glob(self.restored.name)):
            shutil.rmtree(path)
        for path in self.internal.glob("weighted-sum-*.safetensors"):
            if kept_release is None or path != self.weighted_sum(kept_release):
                path.unlink()


def write_model(
    path: Path,
    facts: DeletionContext,
    chunks: Iterable[NDArray[np.float32]],
    faults: Callable[[str], None],
) -> str:
    """Write a model's file from chunks of its flat parameters; return the file's digest."""
    return write_durably(path, _model_parts(facts, chunks), faults, mode=shared_mode(path.parent))


def model_digest_of(facts: DeletionContext, chunks: Iterable[NDArray[np.float32]]) -> str:
    """Return the digest that `write_model` would return, without writing."""
    digest = blake3()
    for part in _model_parts(facts, chunks):
        digest.update(part)
    return digest.hexdigest()


def _model_parts(
    facts: DeletionContext, chunks: Iterable[NDArray[np.float32]]
) -> Iterator[bytes | memoryview]:
    buffers = {name: np.ascontiguousarray(array) for name, array in facts.buffers.items()}
    specs = [(tensor.name, "float32", tensor.shape) for tensor in facts.tensors]
    specs += [(name, array.dtype.name, array.shape) for name, array in buffers.items()]
    yield header(specs, {"format": "pt"})
    for chunk in chunks:
        yield chunk.data.cast("B")
    for array in buffers.values():
        yield array.tobytes()


def write_sum(
    path: Path,
    weighted_sum_P: Float64Array,
    faults: Callable[[str], None],
    masses_C: Masses | None = None,
) -> str:
    """Write the weighted sum, and the masses deleted by class; return the file's digest."""
    # As int32 multiples of the grid it would be half as long, and cost more time than it saves.
    specs = [("weighted_sum", "float64", weighted_sum_P.shape)]
    parts = [weighted_sum_P.data]
    if masses_C is not None:
        specs.append(("masses", "int64", masses_C.shape))
        parts.append(masses_C.data)
    return write_durably(path, [header(specs, {}), *parts], faults)


def read_sum(path: Path, digest: str, num_parameters: int) -> Float64Array:
    """Map the weighted sum into memory, float64 of shape (P,), read only.

    Raises:
        DamagedRunError: The file is missing, or not the one the ledger vouches for.
    """
    _check_sum(path, digest)
    return np.memmap(path, np.float64, "r", _offset(path), (num_parameters,))


def read_masses(path: Path, digest: str, num_parameters: int, num_classes: int) -> Masses:
    """Return the masses deleted by class, (C,); raises as `read_sum`."""
    _check_sum(path, digest)
    offset = _offset(path) + 8 * num_parameters
    if path.stat().st_size != offset + 8 * num_classes:
        raise DamagedRunError(
            f"{path} holds no masses of {num_classes} classes, and the run has class terms; restore "
            "the ledger from a backup that holds them, or retrain"
        )
    return np.fromfile(path, np.int64, num_classes, offset=offset)


def _check_sum(path: Path, digest: str) -> None:
    found = file_digest(path) if path.is_file() else "no file"
    if found != digest:
        raise DamagedRunError(
            f"{path}: expected the sum with digest {digest}, found {found}; restore the ledger "
            "from a backup that holds it, or retrain"
        )


def _offset(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def publish(paths: ReleasePaths, release: int, faults: Callable[[str], None]) -> None:
    """Move a committed release into its place; doing it again does nothing.

    Raises:
        DamagedRunError: The release is in neither place, or another one has its number.
    """
    staged, published = paths.staged(release), paths.published(release)
    if published.exists() and staged.exists():
        raise DamagedRunError(
            f"{published} exists, and is not of this ledger, which has just made release {release}; "
            "restore the ledger that made it"
        )
    if not published.exists():
        if not staged.exists():
            raise DamagedRunError(
                f"release {release} is committed and its files are gone from {staged}; restore "
                "them, since a second draw of its noise must not be published"
            )
        faults("publish:before-rename")
        staged.rename(published)
        faults("publish:after-rename")
    sync_folder(paths.releases, faults)
