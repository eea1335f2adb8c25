"""Targets as a loss takes them: classes, truth values, numbers, or a class at each position."""

# n samples, C classes, D outputs, T positions

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pipeline.data.dataset import Dataset
from pipeline.errors import DataError

Kind = Literal["classes", "truth values", "numbers", "counts", "positions"]

# What each loss takes; a user's own takes what the data hold.
KINDS: dict[str, Kind] = {
    "cross-entropy": "classes",
    "binary-cross-entropy": "truth values",
    "squared-error": "numbers",
    "huber": "numbers",
    "poisson": "counts",
    "token-cross-entropy": "positions",
}
_WANTED: dict[Kind, str] = {
    "classes": "whole class numbers of shape (samples,)",
    "truth values": "truth values or numbers from 0 to 1, of shape (samples,), or (samples, labels) "
    "for several labels",
    "numbers": "numbers of shape (samples,) or (samples, outputs)",
    "counts": "numbers of at least 0, of shape (samples,) or (samples, outputs)",
    "positions": "whole class numbers, or -100 where none counts, of shape (samples, positions)",
}
_INSTEAD: dict[Kind, str] = {
    "classes": "for numbers choose squared-error, huber or poisson, for labels binary-cross-entropy",
    "truth values": "for classes choose cross-entropy, for numbers squared-error",
    "numbers": "for classes choose cross-entropy",
    "counts": "for other numbers choose squared-error, for classes cross-entropy",
    "positions": "for one class per sample choose cross-entropy",
}

# More classes than this, and than samples, are a mistake: the last layer would not fit in memory.
LIKELY_CLASSES = 1_000
IGNORED = -100


@dataclass(frozen=True)
class Targets:
    """The targets of some parts of a data set.

    Attributes:
        parts: Arrays by name, int64 (n,) or (n, T) for classes, float32 (n,) or (n, D) otherwise.
        num_outputs: C, or D.
        class_names: Of classes that were text or truth values; else empty.
    """

    parts: dict[str, np.ndarray]
    num_outputs: int
    class_names: tuple[str, ...] = ()


def kind_of(loss: str, labels: np.ndarray) -> Kind:
    """Return what `training.loss` takes these labels for."""
    if loss in KINDS:
        return KINDS[loss]
    if labels.dtype.kind == "f":
        return "numbers"
    return "classes" if labels.ndim == 1 else "positions"


def as_targets(loss: str, labels: Mapping[str, np.ndarray]) -> Targets:
    """Return labels as the targets of a loss.

    Args:
        loss: `training.loss`.
        labels: Arrays by the name that messages call them; the first holds the training samples'.

    Raises:
        DataError: If the loss takes others; the message names the loss and what was found.
    """
    kind = kind_of(loss, next(iter(labels.values())))
    labels, class_names = _numbered(loss, kind, labels)
    for name, values in labels.items():
        _check(loss, kind, name, values)
    first = next(iter(labels.values()))
    for name, values in labels.items():
        if values.shape[1:] != first.shape[1:] and kind != "positions":
            raise DataError(
                f"{next(iter(labels))} has shape {first.shape}, {name} {values.shape}; they must agree"
            )
    if kind == "classes":
        return Targets(_cast(labels, np.int64), _num_classes(first), class_names)
    if kind == "positions":
        largest = max(int(values.max(initial=0)) for values in labels.values())
        return Targets(_cast(labels, np.int64), largest + 1)
    return Targets(_cast(labels, np.float32), first.shape[1] if first.ndim == 2 else 1, class_names)


def _cast(
    labels: Mapping[str, np.ndarray], dtype: type[np.int64] | type[np.float32]
) -> dict[str, np.ndarray]:
    with np.errstate(over="ignore"):
        # What overflows becomes infinite, and infinite values are refused by name.
        return {name: values.astype(dtype) for name, values in labels.items()}


def _numbered(
    loss: str, kind: Kind, labels: Mapping[str, np.ndarray]
) -> tuple[Mapping[str, np.ndarray], tuple[str, ...]]:
    """Return labels of text or truth values as numbers, in sorted order, and their names."""
    kinds = {name: "text" if y.dtype.kind in "US" else y.dtype.kind for name, y in labels.items()}
    named = kind in ("classes", "truth values") and all(y.ndim == 1 for y in labels.values())
    if not named or not set(kinds.values()) & {"text", "b"}:
        return labels, ()
    if len(set(kinds.values())) > 1:
        found = " and ".join(f"{name} of type {y.dtype}" for name, y in labels.items())
        raise DataError(f"expected labels of one kind, found {found}; write both alike")
    names, numbers = np.unique(np.concatenate(list(labels.values())), return_inverse=True)
    names = names.astype(str)
    if "" in names:
        raise DataError("a label is the empty text; every sample needs a class")
    if kind == "truth values":
        if "text" in kinds.values() and len(names) != 2:
            raise DataError(
                f"{next(iter(labels))} holds {len(names)} different texts; training.loss {loss} takes "
                f"two, or {_WANTED[kind]}; {_INSTEAD[kind]}"
            )
        if "b" in kinds.values():
            return {name: y.astype(np.int64) for name, y in labels.items()}, ("False", "True")
    parts = np.split(numbers, np.cumsum([len(y) for y in labels.values()])[:-1])
    return dict(zip(labels, parts, strict=True)), tuple(names.tolist())


def _check(loss: str, kind: Kind, name: str, values: np.ndarray) -> None:
    """Raise DataError where `values` are not of the kind."""
    wrong = f"; expected {_WANTED[kind]}, which training.loss {loss:.60} takes ({_INSTEAD[kind]})"
    types = {"classes": "iu", "positions": "iu", "truth values": "biuf"}.get(kind, "iuf")
    dimensions = {"classes": (1,), "positions": (2,)}.get(kind, (1, 2))
    if values.ndim not in dimensions or values.dtype.kind not in types or 0 in values.shape[1:]:
        raise DataError(f"{name} has shape {values.shape} and type {values.dtype}{wrong}")
    if not len(values):
        return
    low, high = values.min(), values.max()
    if kind == "classes":
        if int(high) > np.iinfo(np.int64).max:
            raise DataError(
                f"{name} holds label {int(high)}; labels are numbered 0, 1, 2 and so on"
            )
        if low < 0:
            raise DataError(f"{name} holds label {int(low)}; labels must be 0 or more")
    elif kind == "positions":
        if ((values < 0) & (values != IGNORED)).any() or int(high) > np.iinfo(np.int32).max:
            odd = int(values[values < 0].min(initial=high)) if low < 0 else int(high)
            raise DataError(f"{name} holds {odd}{wrong}")
    elif kind != "numbers" and (low < 0 or (kind == "truth values" and high > 1)):
        raise DataError(f"{name} holds {float(low if low < 0 else high):g}{wrong}")


def _num_classes(classes: np.ndarray) -> int:
    """Return C; raise DataError where the numbers are no class numbers."""
    num_classes = int(classes.max()) + 1 if len(classes) else 0
    if num_classes > max(LIKELY_CLASSES, len(classes)):
        raise DataError(
            f"y holds class {num_classes - 1}, but there are only {len(classes)} samples; classes "
            "are numbered 0, 1, 2 and so on"
        )
    return num_classes


def fitted(data: Dataset, source: str, loss: str) -> Dataset:
    """Return the data of a source of classes or of numbers with the targets that a loss takes.

    Raises:
        DataError: If the source has none.
    """
    classes = not data.targets.is_floating_point()
    kind = KINDS.get(loss, "classes" if classes else "numbers")
    if kind == ("classes" if classes else "numbers"):
        return data
    if classes and kind == "truth values" and data.num_classes == 2:
        return replace(
            data,
            targets=data.targets.float(),
            test_targets=data.test_targets.float(),
            num_classes=1,
        )
    found = f"{data.num_classes} classes" if classes else "numbers of either sign"
    raise DataError(
        f"source {source!r} holds {found}, and training.loss {loss} takes {_WANTED[kind]}; choose "
        f"training.loss {'cross-entropy' if classes else 'squared-error or huber'}, or another source"
    )
