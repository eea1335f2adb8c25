"""Inputs that stay in their own type until a minibatch of them is asked for."""

# n samples, C channels, V values of a byte

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pipeline.data.input_files import InputFile, is_large

_VALUES = 256
# Numbers that a whole pass converts together: workers keep the memory that they once had.
_AT_ONCE = 4 << 20


@dataclass(frozen=True)
class OwnInputs:
    """Inputs in their source's own type, and what they stand for.

    Attributes:
        rows: (n, ...), in memory or in a file.
        values_CV: What each byte stands for in each channel (C, 256), float32; None where the numbers
            stand for themselves.
    """

    rows: np.ndarray | InputFile
    values_CV: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the inputs, (n, ...)."""
        return self.rows.shape

    @property
    def is_large(self) -> bool:
        """Whether there are too many to be held as numbers."""
        return isinstance(self.rows, InputFile) or is_large(self.rows.nbytes)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers that they stand for: float32, or int64."""
        whole = self.values_CV is None and self.rows.dtype.kind in "iu"
        return torch.int64 if whole else torch.float32

    def __len__(self) -> int:
        """Return n."""
        return len(self.rows)

    def finite(self) -> np.ndarray:
        """Return which samples hold finite numbers alone (n,)."""
        if self.rows.dtype.kind != "f":
            return np.ones(len(self), bool)
        starts = range(0, len(self), self.together)
        return np.concatenate([finite_rows(self.between(i, i + self.together)) for i in starts])

    @property
    def together(self) -> int:
        """How many samples a whole pass converts together."""
        return max(1, _AT_ONCE // max(1, prod(self.shape[1:])))

    def take(self, samples: np.ndarray) -> np.ndarray:
        """Return some samples in their own type (m, ...), row-major."""
        if isinstance(self.rows, InputFile):
            return self.rows.take(samples)
        return np.take(self.rows, samples, axis=0)

    def between(self, start: int, stop: int) -> np.ndarray:
        """Return the samples from `start` to before `stop` in their own type, row-major."""
        stop = min(stop, len(self))
        if isinstance(self.rows, InputFile):
            return self.rows.between(start, stop)
        return np.array(self.rows[start:stop], order="C")


class LazyInputs(Tensor):
    """A tensor (n, ...) whose values are made when they are asked for.

    Indexing and slicing along the samples read what they name, in its own type, convert it, and
    return a plain tensor; `split` does so part by part. Any other operation makes the whole tensor
    first, which is right but needs the room: what goes through all samples should use `split`.

    A byte's number is looked up in a table that was computed once, so its bits are the same on every
    device and in every minibatch.
    """

    # Methods of this class decide, not torch's hook for all functions.
    __torch_function__: Any = torch._C._disabled_torch_function_impl
    _own: OwnInputs
    _values_CV: Tensor | None

    @staticmethod
    def __new__(cls, own: OwnInputs, dtype: torch.dtype, device: torch.device) -> "LazyInputs":
        """Return the inputs as numbers of `dtype` on `device`."""
        make: Any = Tensor._make_wrapper_subclass
        made: LazyInputs = make(cls, own.shape, dtype=dtype, device=device)
        made._own, made._values_CV = own, None
        if own.values_CV is not None:
            made._values_CV = torch.from_numpy(own.values_CV).to(device, dtype)
        return made

    def __getitem__(self, samples: Any) -> Tensor:
        """Return the inputs of a sample, of a slice of them, or of those that a tensor (m,) names.

        A tensor holds positions (int64) or is a mask (n,); any other index is applied to the whole.
        """
        if isinstance(samples, list | np.ndarray):
            samples = torch.as_tensor(samples)
        if isinstance(samples, int | np.integer) or _is_number(samples):
            position = range(len(self))[int(samples)]
            return self._numbers(self._own.between(position, position + 1))[0]
        if isinstance(samples, slice):
            start, stop, stride = samples.indices(len(self))
            if stride == 1:
                return self._numbers(self._own.between(start, max(start, stop)))
            return self._numbers(self._own.take(np.arange(start, stop, stride)))
        if isinstance(samples, Tensor) and samples.dim() == 1:
            chosen = samples.nonzero().squeeze(1) if samples.dtype == torch.bool else samples
            return self._numbers(self._own.take(self._positions(chosen.cpu().numpy())))
        return self.whole()[samples]

    def _positions(self, samples: np.ndarray) -> np.ndarray:
        count = len(self)
        if len(samples) and (samples.min() < -count or samples.max() >= count):
            raise IndexError(f"samples are numbered 0 to {count - 1}")
        return np.where(samples < 0, samples + count, samples).astype(np.int64)

    def parts(self, size: int) -> Iterator[Tensor]:
        """Yield the inputs in order, `size` samples at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def split(self, split_size: Any, dim: int = 0) -> Any:
        """Return the inputs `split_size` at a time, each part made when it is reached."""
        if isinstance(split_size, int) and dim == 0:
            return self.parts(split_size)
        return self.whole().split(split_size, dim)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Return the same inputs on another device, or as other numbers; nothing is read."""
        # What a tensor without values would become tells which.
        target = torch.empty(0, dtype=self.dtype, device=self.device).to(*args, **kwargs)
        if (target.dtype, target.device) == (self.dtype, self.device):
            return self
        return LazyInputs(self._own, target.dtype, target.device)

    def whole(self) -> Tensor:
        """Return the plain tensor (n, ...)."""
        made = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        done = 0
        for part in self.parts(self._own.together):
            made[done : done + len(part)] = part
            done += len(part)
        return made

    def _numbers(self, own: np.ndarray) -> Tensor:
        """Return what inputs in their own type (m, ...) stand for."""
        raw = torch.from_numpy(own).to(self.device)
        if self._values_CV is None:
            return raw.to(self.dtype)
        numbers = torch.empty(raw.shape, dtype=self.dtype, device=self.device)
        for channel, values_V in enumerate(self._values_CV):
            looked_up = values_V.index_select(0, raw[:, channel].reshape(-1).int())
            numbers[:, channel] = looked_up.view(raw[:, channel].shape)
        return numbers

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Return what kind of tensor this is; its values are not read."""
        return f"LazyInputs(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Send the inputs in their own type, or where their file lies."""
        return LazyInputs, (self._own, self.dtype, self.device)

    def __deepcopy__(self, memo: Any) -> "LazyInputs":
        """Return the same: nothing changes it."""
        return self

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Do any other operation on the whole tensor."""

        def plain(value: Any) -> Any:
            return value.whole() if isinstance(value, LazyInputs) else value

        return func(*tree_map(plain, args), **tree_map(plain, kwargs or {}))


def _is_number(index: Any) -> bool:
    is_whole = isinstance(index, Tensor) and index.dim() == 0 and index.dtype != torch.bool
    return is_whole and not index.is_floating_point()


def finite_rows(values: np.ndarray) -> np.ndarray:
    """Return which of the rows (n, ...) hold finite numbers alone (n,)."""
    finite: np.ndarray = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    return finite


def as_tensor(own: OwnInputs) -> Tensor:
    """Return inputs as numbers on the CPU: lazily if there are many, else at once."""
    lazy = LazyInputs(own, own.dtype, torch.device("cpu"))
    return lazy if own.is_large else lazy.whole()


def in_parts(inputs: Tensor) -> Iterator[Tensor]:
    """Yield inputs in order, lazy ones some at a time; plain ones are one part."""
    if isinstance(inputs, LazyInputs):
        yield from inputs.parts(inputs._own.together)
    else:
        yield inputs


def held_bytes(inputs: Tensor) -> int:
    """Return the bytes of memory that inputs take in a worker.

    Lazy ones take none: workers read them from the run's files.
    """
    return 0 if isinstance(inputs, LazyInputs) else inputs.nelement() * inputs.element_size()


def bytes_without_file(inputs: Tensor) -> int:
    """Return the bytes that lazy inputs take in this process, for want of a run, and in no worker."""
    if not isinstance(inputs, LazyInputs) or isinstance(inputs._own.rows, InputFile):
        return 0
    return inputs._own.rows.nbytes


def picture_values(
    mean: np.ndarray | None, deviation: np.ndarray | None, channels: int
) -> np.ndarray:
    """Return what each byte of a picture stands for (C, 256), float32.

    x / 255, less the channel's mean, over its deviation, each step rounded to float32.

    >>> picture_values(None, None, 1)[0, [0, 51, 255]].tolist()
    [0.0, 0.20000000298023224, 1.0]
    """
    values_CV = np.tile(np.arange(_VALUES, dtype=np.uint8), (channels, 1)).astype(np.float32)
    values_CV /= np.float32(255)
    if mean is not None and deviation is not None:
        values_CV -= mean.astype(np.float32)[:, None]
        values_CV /= deviation.astype(np.float32)[:, None]
    return values_CV
