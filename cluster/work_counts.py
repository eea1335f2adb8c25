"""The counts that fix what a run costs, whatever it runs on: pure arithmetic, without torch."""

# N units, n samples, P parameters, T steps, K units of a chunk, B minibatch rows

import os
from dataclasses import dataclass, replace

import numpy as np

from pipeline.config import ClusterConfig, RunConfig
from pipeline.sizes import chunk_and_block
from storage.encoding import ENCODINGS


@dataclass(frozen=True)
class Workload:
    """The counts that fix what a run costs, whatever it runs on.

    Attributes:
        num_units: N, approximators to compute.
        num_parameters: P.
        num_steps: T.
        num_products: HVPs of all units: a unit costs nothing before its first visit.
        block: Units of a block.
        chunk: Units computed together, K.
        encoding: Encoding of the approximators.
        state_bytes_per_unit: What a unit holds while it is computed.
        num_checkpoints: Stored parameters along the trajectory.
        checkpoint_bytes: One of them.
        schedule_bytes: Sample ids and learning rates of all steps.
        forward_flops: Floating-point operations of the network on one minibatch.
        num_samples: n.
        batch_size: B.
    """

    num_units: int
    num_parameters: int
    num_steps: int
    num_products: int
    block: int
    chunk: int
    encoding: str
    state_bytes_per_unit: int
    num_checkpoints: int
    checkpoint_bytes: int
    schedule_bytes: int
    forward_flops: float
    num_samples: int
    batch_size: int

    @property
    def num_blocks(self) -> int:
        """Blocks, the last one possibly smaller."""
        return -(-self.num_units // self.block)

    @property
    def block_sizes(self) -> list[int]:
        """Units of each block, in the order they are computed."""
        starts = range(0, self.num_units, self.block)
        return [min(self.block, self.num_units - start) for start in starts]

    @property
    def samples_per_unit(self) -> float:
        """Samples of a unit, on average."""
        return self.num_samples / self.num_units

    @property
    def num_epochs(self) -> int:
        """Passes over the samples."""
        return self.num_steps // -(-self.num_samples // self.batch_size)

    @property
    def row_bytes(self) -> int:
        """Stored bytes of one approximator."""
        kind = ENCODINGS[self.encoding]
        return kind.code_bytes(self.num_parameters) + 2 * kind.scale_width(self.num_parameters)

    @property
    def store_bytes(self) -> int:
        """Stored bytes of all approximators."""
        return self.num_units * self.row_bytes

    @property
    def trajectory_bytes(self) -> int:
        """Bytes of checkpoints and schedule."""
        return self.num_checkpoints * self.checkpoint_bytes + self.schedule_bytes

    @property
    def product_flops(self) -> float:
        """Operations of one HVP on one minibatch: six forward passes' worth (docs/method.md, 3)."""
        return 6 * self.forward_flops

    @property
    def flops(self) -> float:
        """Operations of the whole precomputation: HVPs, and one gradient per block and step."""
        primal = 3 * self.forward_flops * self.num_blocks * self.num_steps
        return self.num_products * self.product_flops + primal

    def with_units(self, num_units: int, asked: RunConfig, fitting_chunk: int) -> "Workload":
        """Return the same run with so many units, its blocks and chunks as a run of them has.

        Args:
            num_units: N; the samples are shared among them.
            asked: The configuration as written: what it leaves open depends on the units.
            fitting_chunk: The tangents that fit into cache.

        Raises:
            ConfigError: If the engine needs more units.
        """
        chunk, block = chunk_and_block(asked, num_units, self.num_parameters, fitting_chunk)
        products = expected_products(num_units, self.num_samples, self.batch_size, self.num_epochs)
        return replace(
            self,
            num_units=num_units,
            num_products=products,
            block=min(block, num_units),
            chunk=min(chunk, num_units),
        )


def expected_products(num_units: int, num_samples: int, batch_size: int, num_epochs: int) -> int:
    """Return the HVPs of all units: each has one in every step from its first visit on.

    Exact where each unit owns one sample, since every sample occurs once in the first epoch. Otherwise
    the mean over random orders, of units as equal as can be.

    >>> expected_products(num_units=6, num_samples=6, batch_size=2, num_epochs=1)
    12
    """
    steps = -(-num_samples // batch_size)
    seen = np.minimum(np.arange(1, steps + 1) * batch_size, num_samples)
    small, more = divmod(num_samples, num_units)
    first_epoch = 0.0
    for size, count in ((small, num_units - more), (small + 1, more)):
        if count and size:
            first_epoch += count * float((1 - _all_unseen(size, seen, num_samples)).sum())
    visited = min(num_units, num_samples)
    return round(first_epoch) + visited * steps * (num_epochs - 1)


def _all_unseen(size: int, seen: np.ndarray, num_samples: int) -> np.ndarray:
    """The probability that none of a unit's samples is among so many seen ones."""
    left = num_samples - seen
    others = np.arange(size)[:, None]
    # One factor for each sample of the unit; in pieces, since a unit may own millions.
    result = np.ones(len(seen))
    for start in range(0, size, 1024):
        part = others[start : start + 1024]
        result *= (np.maximum(left - part, 0) / (num_samples - part)).prod(0)
    return result


def fitting_workers(cluster: ClusterConfig, asked: int | None, work: Workload) -> int:
    """Return how many workers a run has on this machine: as asked, or as cores and blocks allow."""
    wanted: int | str = asked or cluster.num_workers
    fitting = max(1, (os.cpu_count() or 1) // cluster.cpus_per_worker)
    return min(wanted if isinstance(wanted, int) else fitting, work.num_blocks)


def schedule_bytes(num_epochs: int, num_samples: int, num_steps: int) -> int:
    """Parquet keeps a dictionary of ids and packs each into as many bits as it takes."""
    num_ids = num_epochs * num_samples
    return num_ids * num_samples.bit_length() // 8 + 8 * num_samples + 24 * num_steps


def record_bytes(num_samples: int, num_others: int) -> int:
    """A number and a unit for each training sample, a number for each other row of the source."""
    return 8 * (2 * num_samples + num_others)
