"""Class terms: what deletions from some classes more than from others add to a sum.

    w = w_T + f(M) S + sum_c (f_c - f)^2 r_c      f_c = mass of class c deleted / mass of c in its half

r_c is what one retraining without a random half of class c moves, less what the corrected sum of the
half's approximators says; f is the mean of f_c over the classes that have a term (docs/method.md,
section 4). Only the masses deleted so far enter, so order and grouping of requests do not.

In a run directory, for each generation g:

    internal/class-terms-<g>/
        term-<c>.safetensors        r_c, (P,) in the run's precision, with what it was made from
        unit-masses.safetensors     the classes of each unit and their masses; zeros where it is erased
        index.json                  written last: masses of the halves, BLAKE3 of each term's file

The masses of a unit are personal data: they are overwritten where they stand, before its approximator
is erased. Terms are functions of all training data, as the trained parameters are, and stay.
"""

# N units, C classes, W classes of the unit that has the most, P parameters

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pipeline import tensor_file
from pipeline.errors import DamagedRunError
from pipeline.run.checkpoints import recorded_digest
from pipeline.run.directory import RunDirectory
from storage.durable_write import file_digest, sync_folder, write_atomically

Masses = NDArray[np.int64]
"""Mass by class, (C,)."""
Vector = NDArray[np.float32] | NDArray[np.float64]

FORMAT = 1
INDEX = "index.json"
UNIT_MASSES = "unit-masses.safetensors"
_CHECK_BYTES = 16
_REMEDY = (
    "restore it from a backup or a copy of the run, or train without the deleted with `unlearn "
    "retrain`, which makes new ones"
)


def terms_folder(run: Path, generation: int) -> Path:
    """Return where the class terms of a generation lie."""
    return run / "internal" / f"class-terms-{generation}"


def remove_other_generations(run: Path, generation: int) -> None:
    """Remove the class terms of all generations but one, with their units' masses."""
    kept = terms_folder(run, generation)
    found = [path for path in kept.parent.glob("class-terms-*") if path != kept]
    for path in found:
        # The index first: what has none counts for nothing.
        (path / INDEX).unlink(missing_ok=True)
        shutil.rmtree(path)
    if found:
        sync_folder(kept.parent)


def class_terms_of(run: RunDirectory, generation: int = 0) -> "ClassTerms | None":
    """Return the class terms of a run; None where it is to have none, or they are not computed.

    Raises:
        DamagedRunError: Their index cannot be read.
    """
    if not run.config.recursion.class_terms:
        return None
    trajectory = recorded_digest(run.trajectory_folder_of(generation))
    return ClassTerms.read(terms_folder(run.path, generation), trajectory or "")


def term_path(folder: Path, number: int) -> Path:
    """Return the file of the term of a class."""
    return folder / f"term-{number}.safetensors"


@dataclass(frozen=True)
class UnitMasses:
    """The masses by class of units: each in a record of one size, whatever its classes.

    Attributes:
        path: A safetensors file: `mass` int64 (N, W), `class` int32 (N, W), `check` uint8 (N, 16), the
            first 16 bytes of BLAKE3 over the trajectory's digest (text), the row as 8 bytes, masses and
            classes, all little-endian. An erased unit's record is zeros.
        num_units: N.
        width: W.
        trajectory: Digest of the training that the masses are of.
    """

    path: Path
    num_units: int
    width: int
    trajectory: str

    @staticmethod
    def write(
        path: Path,
        trajectory: str,
        mass_NW: NDArray[np.int64],
        class_NW: NDArray[np.int32],
        rows: Sequence[int],
    ) -> "UnitMasses":
        """Write the records of all units; those that are not at `rows` count as erased."""
        num_units, width = mass_NW.shape
        made = UnitMasses(path, num_units, width, trajectory)
        check_NB = np.zeros((num_units, _CHECK_BYTES), np.uint8)
        for row in rows:
            check_NB[row] = made._check(row, mass_NW[row], class_NW[row])
        arrays = {"mass": mass_NW, "class": class_NW, "check": check_NB}
        parts = [made._header(), *(np.ascontiguousarray(a).tobytes() for a in arrays.values())]
        write_atomically(path, parts, mode=0o600)
        return made

    def _specs(self) -> list[tuple[str, str, tuple[int, ...]]]:
        return [
            ("mass", "int64", (self.num_units, self.width)),
            ("class", "int32", (self.num_units, self.width)),
            ("check", "uint8", (self.num_units, _CHECK_BYTES)),
        ]

    def _header(self) -> bytes:
        return tensor_file.header(self._specs(), {})

    def _mapped(self) -> "list[np.memmap[Any, Any]]":
        """Map the columns into memory.

        Raises:
            DamagedRunError: The file is missing, or not of this size.
        """
        header, columns = self._header(), self._specs()
        size = len(header) + sum(
            int(np.prod(shape)) * np.dtype(dtype).itemsize for _, dtype, shape in columns
        )
        try:
            with self.path.open("rb") as file:
                same = file.read(len(header)) == header
        except OSError as error:
            raise DamagedRunError(f"{self.path} cannot be read ({error}); {_REMEDY}") from error
        if not same or self.path.stat().st_size != size:
            raise DamagedRunError(f"{self.path} is not the file of this run; {_REMEDY}")
        found, offset = [], len(header)
        for _, dtype, shape in columns:
            found.append(np.memmap(self.path, dtype, "r", offset, shape))
            offset += found[-1].nbytes
        return found

    def _check(self, row: int, mass_W: NDArray[np.int64], class_W: NDArray[np.int32]) -> Any:
        columns = mass_W.tobytes(), class_W.tobytes()
        content = b"".join((self.trajectory.encode(), row.to_bytes(8, "little"), *columns))
        return np.frombuffer(blake3(content).digest(_CHECK_BYTES), np.uint8)

    def total(self, rows: Sequence[int], num_classes: int) -> Masses:
        """Return the mass by class of some units together, (C,).

        Raises:
            DamagedRunError: A record is damaged, or erased.
        """
        masses_NW, classes_NW, checks_NB = self._mapped()
        total_C = np.zeros(num_classes, np.int64)
        for row in rows:
            mass_W, class_W = np.array(masses_NW[row]), np.array(classes_NW[row])
            if not checks_NB[row].any():
                raise DamagedRunError(f"{self.path}: the masses of row {row} are gone; {_REMEDY}")
            if not np.array_equal(checks_NB[row], self._check(row, mass_W, class_W)):
                raise DamagedRunError(f"{self.path}: the record of row {row} is damaged; {_REMEDY}")
            np.add.at(total_C, class_W, mass_W)
        return total_C

    def erase(self, rows: Sequence[int]) -> None:
        """Overwrite the records of some units with zeros, durably; erasing again does nothing.

        Raises:
            DamagedRunError: The file is missing, or not of this size.
        """
        columns = self._mapped()
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            for column in columns:
                # Written, not mapped: syncing a mapping takes longer the larger it is.
                zeros = bytes(column[0].nbytes)
                for row in rows:
                    os.pwrite(descriptor, zeros, column.offset + row * len(zeros))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def damaged(self, is_erased: Sequence[bool]) -> Iterator[str]:
        """Yield what is wrong with the records, in words that name rows alone.

        Args:
            is_erased: Of each row, whether its unit is erased.
        """
        masses_NW, classes_NW, checks_NB = self._mapped()
        held_N = np.concatenate([masses_NW, classes_NW, checks_NB], axis=1).max(axis=1) > 0
        for row, erased in enumerate(is_erased):
            if erased and held_N[row]:
                yield f"the masses of the erased unit of row {row} are there"
            elif not erased and not held_N[row]:
                yield f"the masses of row {row} are gone"
            elif held_N[row]:
                wanted = self._check(row, np.array(masses_NW[row]), np.array(classes_NW[row]))
                if not np.array_equal(checks_NB[row], wanted):
                    yield f"the record of row {row} is damaged"


@dataclass(frozen=True)
class ClassTerms:
    """The class terms of a generation.

    Attributes:
        folder: Where they lie.
        half_masses_C: Mass of each class in the half that its term was measured on; 0: no term.
        digests: BLAKE3 of each term's file, by class.
        num_parameters: P.
        dtype: Of the terms.
        units: Masses of the units.
        digest: BLAKE3 of the index, which names all of this.
    """

    folder: Path
    half_masses_C: Masses
    digests: dict[int, str]
    num_parameters: int
    dtype: str
    units: UnitMasses
    digest: str
    _vectors: dict[int, Vector] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def read(folder: Path, trajectory: str) -> "ClassTerms | None":
        """Return the terms in a folder; None where none are finished.

        Args:
            folder: As `terms_folder` names it.
            trajectory: Digest of the training that they are to be of; of another one: None.

        Raises:
            DamagedRunError: The index cannot be read.
        """
        path = folder / INDEX
        try:
            content = path.read_bytes()
            body = json.loads(content)
            if body["format"] != FORMAT:
                raise ValueError(f"format {body['format']!r:.20}")
            if body["trajectory"] != trajectory:
                return None
            units = UnitMasses(
                folder / UNIT_MASSES, int(body["num_units"]), int(body["width"]), trajectory
            )
            digests = {int(number): str(digest) for number, digest in body["terms"].items()}
            halves_C = np.array(body["half_masses"], np.int64)
            size, dtype = int(body["num_parameters"]), np.dtype(body["dtype"]).name
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedRunError(f"{path} is damaged ({error!r:.80}); {_REMEDY}") from error
        digest = blake3(content).hexdigest()
        return ClassTerms(folder, halves_C, digests, size, dtype, units, digest)

    @staticmethod
    def write(
        folder: Path, units: UnitMasses, half_masses_C: Masses, num_parameters: int, dtype: str
    ) -> "ClassTerms":
        """Write the index of terms whose files are there; from here on they count."""
        numbers = np.flatnonzero(half_masses_C).tolist()
        body = {
            "format": FORMAT,
            "trajectory": units.trajectory,
            "num_parameters": num_parameters,
            "dtype": dtype,
            "num_units": units.num_units,
            "width": units.width,
            "half_masses": half_masses_C.tolist(),
            "terms": {str(number): file_digest(term_path(folder, number)) for number in numbers},
        }
        content = json.dumps(body, sort_keys=True, indent=1).encode()
        write_atomically(folder / INDEX, content, mode=0o600)
        made = ClassTerms.read(folder, units.trajectory)
        assert made is not None, "written just now"
        return made

    @property
    def num_classes(self) -> int:
        """C, those without a term included."""
        return len(self.half_masses_C)

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The classes that have a term, ascending."""
        return tuple(np.flatnonzero(self.half_masses_C).tolist())

    def masses_of(self, rows: Sequence[int]) -> Masses:
        """Return the mass by class of units at some rows together, (C,)."""
        return self.units.total(rows, self.num_classes)

    def coefficients(self, deleted_C: Masses) -> list[float]:
        """Return (f_c - f)^2 for each class of `numbers`, from the masses deleted so far (C,)."""
        chosen = list(self.numbers)
        shares = deleted_C[chosen] / self.half_masses_C[chosen]
        squares: list[float] = ((shares - shares.mean()) ** 2).tolist()
        return squares

    def vector(self, number: int) -> Vector:
        """Map the term of a class into memory, (P,), read only; checked when it is first asked for.

        Raises:
            DamagedRunError: The file is missing, or not the one that the index names.
        """
        if number not in self._vectors:
            path = term_path(self.folder, number)
            found = file_digest(path) if path.is_file() else "no file"
            if found != self.digests[number]:
                raise DamagedRunError(
                    f"{path}: expected the term with digest {self.digests[number]}, found {found}; "
                    f"{_REMEDY}"
                )
            with path.open("rb") as file:
                offset = 8 + int.from_bytes(file.read(8), "little")
            self._vectors[number] = np.memmap(path, self.dtype, "r", offset, (self.num_parameters,))
        return self._vectors[number]

    def adder(self, deleted_C: Masses) -> Callable[[int, NDArray[np.float64]], None]:
        """Return a function that adds the terms to values (float64) that begin at some parameter.

        Args:
            deleted_C: Masses deleted so far.
        """
        pairs = zip(self.coefficients(deleted_C), self.numbers, strict=True)
        scaled = [(value, self.vector(number)) for value, number in pairs if value]

        def add(start: int, values_C: NDArray[np.float64]) -> None:
            for value, vector_P in scaled:
                values_C += value * vector_P[start : start + values_C.size].astype(np.float64)

        return add


@dataclass(frozen=True)
class ErasableMasses:
    """The masses of units as a place that deletions erase, before the store erases the units' names.

    Attributes:
        run: The run's folder.
        generation: The present one; those of others are removed whole.
        terms: Of that generation; None where there are none.
        row_of: Returns the row of a unit by its name.
    """

    run: Path
    generation: int
    terms: ClassTerms | None
    row_of: Callable[[str], int]

    def erase(self, units: Sequence[str], pseudonym: Callable[[str], str]) -> None:
        """Overwrite the masses of units."""
        if self.terms is not None:
            self.terms.units.erase([self.row_of(unit) for unit in units])
        remove_other_generations(self.run, self.generation)
