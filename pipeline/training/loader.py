"""Minibatches of a run's training samples, with the ids by which the recorder knows them."""

# n training samples, B minibatch rows

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate
from torch.utils.data import Dataset as TorchDataset

from pipeline.data import Dataset
from pipeline.errors import ConfigError, DataError

# What a second reading of the same files may differ by: the last bits of a normalisation.
RELATIVE, ABSOLUTE = 1e-5, 1e-6

Collate = Callable[[list[Any]], Any]


class Sample(NamedTuple):
    """An item of a dataset, and the id under which it is unlearned: its row in the source."""

    item: Any
    sample_id: int


class TrainingSamples(TorchDataset[Sample]):
    """The training samples of a source, each with its id.

    Position p holds the p-th training sample; its id is its row in the source. Samples that do not
    train are not among them.

    Args:
        data: The run's samples, as the whole model takes them, on the CPU.
        dataset: A user's map-style dataset whose item i is row i of the source; None serves `data`.
        keys: Where the items of `dataset` are mappings, the keys of inputs and targets.

    Raises:
        DataError: If `dataset` has another length, or a training sample of other inputs or targets.
    """

    def __init__(
        self,
        data: Dataset,
        dataset: TorchDataset[Any] | None = None,
        keys: tuple[str, str] = ("inputs", "labels"),
    ) -> None:
        self.data, self.dataset, self.keys = data, dataset, keys
        self._ids = data.sample_ids.tolist()
        if dataset is not None:
            self._check_length(dataset)
            for position in range(len(self)):
                self._check_item(position)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, position: int) -> Sample:
        """Return the item at a position, and its sample's id."""
        sample = self._ids[position]
        if self.dataset is not None:
            return Sample(self.dataset[sample], sample)
        return Sample((self.data.inputs[position], self.data.targets[position]), sample)

    def pair(self, item: Any) -> tuple[Any, Any]:
        """Return inputs and targets of one item, or of a minibatch of items.

        Raises:
            DataError: If it holds something else.
        """
        expected = (
            f"expected a pair of inputs and target, or a mapping with {' and '.join(self.keys)}"
        )
        if isinstance(item, Mapping):
            missing = [key for key in self.keys if key not in item]
            if missing:
                raise DataError(f"an item of the dataset has no {missing[0]!r}; {expected}")
            return item[self.keys[0]], item[self.keys[1]]
        if isinstance(item, tuple | list) and len(item) == 2:
            return item[0], item[1]
        raise DataError(f"an item of the dataset is a {_described(item)}; {expected}")

    def _check_length(self, dataset: TorchDataset[Any]) -> None:
        # torch's own base class has a __getitem__ that fails.
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise DataError(
                f"{type(dataset).__name__} is no map-style dataset: it needs __getitem__ and __len__, "
                "so that item i is row i of the source"
            )
        rows = self.data.rows
        expected = len(self) if rows is None else sum(map(len, vars(rows).values()))
        if len(dataset) != expected:
            raise DataError(
                f"the dataset has {len(dataset)} items, the source {expected} rows; item i must be row "
                "i of the source, those included that do not train"
            )

    def _check_item(self, position: int) -> None:
        item, sample = self[position]
        found = dict(zip(("inputs", "targets"), self.pair(item), strict=True))
        expected = {"inputs": self.data.inputs[position], "targets": self.data.targets[position]}
        for name, value in found.items():
            difference = _difference(torch.as_tensor(value), expected[name])
            if difference:
                raise DataError(
                    f"sample {sample}: {name} of the dataset and of data.source differ, {difference}; "
                    "item i must be row i of the source, without augmentation, and scaled alike"
                )


def _difference(found: Tensor, expected: Tensor) -> str:
    """Return in what two tensors differ; nothing if they agree up to rounding."""
    if found.shape != expected.shape:
        return f"with shape {tuple(found.shape)} there and {tuple(expected.shape)} here"
    found = found.to(expected)
    if torch.allclose(found, expected, rtol=RELATIVE, atol=ABSOLUTE):
        return ""
    if not expected.dim():
        return f"{found.item()} there and {expected.item()} here"
    return f"by up to {float((found.double() - expected.double()).abs().max()):.3g}"


def _described(item: object) -> str:
    kind = type(item).__name__
    return f"{kind} of {len(item)}" if isinstance(item, tuple | list) else kind


class WithIds:
    """A collate function that keeps the ids of the samples: (minibatch, ids (B,) int64)."""

    def __init__(self, collate: Collate | None = None) -> None:
        self.collate = collate or default_collate

    def __call__(self, samples: list[Sample]) -> tuple[Any, Tensor]:
        """Return the collated items, and their samples' ids."""
        ids = torch.tensor([sample.sample_id for sample in samples])
        return self.collate([sample.item for sample in samples]), ids


def data_loader(
    samples: TrainingSamples,
    collate: Callable[[list[Sample]], Any],
    seed: int,
    options: dict[str, Any],
) -> "DataLoader[Any]":
    """Return torch's loader of what `collate` makes of samples; its order depends on `seed` alone.

    Raises:
        ConfigError: If `options` holds what decides the order here.
    """
    taken = {"dataset", "generator", "batch_sampler"} & options.keys()
    if taken:
        raise ConfigError(
            f"loader takes no {sorted(taken)[0]}; give seed and batch_size, or draw minibatches "
            "yourself and hand their ids to recorder.step"
        )
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(samples, generator=generator, collate_fn=collate, **options)


class Loader:
    """Minibatches (inputs, targets, sample ids), each announced to the recorder as it is handed out.

    Args:
        samples: What is drawn from.
        batches: torch's loader of (minibatch, ids).
        draw: Called with ids and inputs of each minibatch; returns the inputs to hand out.
    """

    def __init__(
        self,
        samples: TrainingSamples,
        batches: "DataLoader[tuple[Any, Tensor]]",
        draw: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self._samples, self._batches, self._draw = samples, batches, draw

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for minibatch, ids in self._batches:
            inputs, targets = self._samples.pair(minibatch)
            yield self._draw(ids, inputs), targets, ids
