"""What three recipes cost on GPUs, by the planner's own formulas: `simulate.py --arithmetic`.

No GPU was measured. The rate is an assumed share of a GPU's published dense matrix-product rate, and
the price an assumption too; both are parameters.
"""

# N units, n samples, P parameters, T steps

from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from cluster.planner import (
    GIB,
    STATED_WRITE_BYTES,
    Plan,
    stated_rates,
)
from cluster.work_counts import (
    Workload,
)
from pipeline.evaluation.formats import duration, size
from pipeline.models.resnet import resnet18

# An H200 has 141 GB.
MEMORY_GIB = 131.0
# Everything but the reading (docs/benchmarks.md, ResNet-18, CPU seconds).
DELETE_SECONDS = 0.3
CHUNK = 32
WORKERS = (8, 64, 512)


@dataclass(frozen=True)
class Recipe:
    """A data set, its units, and how it is trained.

    Attributes:
        name: For the table.
        samples: n.
        units: N.
        pixels: Width and height of a picture.
        classes: Outputs.
        stem: Of ResNet-18.
        epochs, batch_size: Of the training.
    """

    name: str
    samples: int
    units: int
    pixels: int
    classes: int
    stem: str
    epochs: int
    batch_size: int = 256

    def workload(self) -> Workload:
        """Count what the recipe has to do, with int8 rows, SGD, and 20 checkpoints."""
        shape = (3, self.pixels, self.pixels)
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            network = resnet18(shape, self.classes, "relu", "group", self.stem)  # type: ignore[arg-type]
            network(torch.empty(1, *shape))
        num_parameters = sum(weight.numel() for weight in network.parameters())
        epoch = -(-self.samples // self.batch_size)
        # The first of m samples drawn without replacement is met after 1 / (m + 1) of the epoch.
        before = epoch / (self.samples / self.units + 1)
        num_steps = epoch * self.epochs
        width = 4 * num_parameters
        return Workload(
            num_units=self.units,
            num_parameters=num_parameters,
            num_steps=num_steps,
            num_products=round(self.units * (num_steps - before)),
            block=self.units,
            chunk=CHUNK,
            encoding="int8",
            state_bytes_per_unit=width,
            num_checkpoints=20,
            checkpoint_bytes=width,
            schedule_bytes=self.samples * self.epochs * self.samples.bit_length() // 8,
            forward_flops=float(counter.get_total_flops()) * self.batch_size,
        )


RECIPES = (
    Recipe("CIFAR-10, a unit is a picture, ImageNet stem", 50_000, 50_000, 32, 10, "imagenet", 40),
    Recipe("CIFAR-10, a unit is a picture, small stem", 50_000, 50_000, 32, 10, "small", 40),
    Recipe("CelebA 128 x 128, a unit is a person", 200_000, 10_177, 128, 2, "imagenet", 5),
    Recipe("ImageNet 224 x 224, people of 100", 1_281_167, 12_812, 224, 1000, "imagenet", 30),
)


def plan_of(recipe: Recipe, tflops: float, workers: int) -> Plan:
    """Return the recipe's plan, in blocks that fit into memory and keep every worker busy."""
    work = recipe.workload()
    plan = Plan(work, stated_rates(work, tflops, MEMORY_GIB), workers)
    passes = -(-work.num_units // (max(1, plan.largest_block) * workers))
    block = -(-work.num_units // (passes * workers))
    return replace(plan, workload=replace(work, block=block))


def arithmetic(peak: float, share: float, price: float) -> None:
    """Print the table.

    Args:
        peak: Published dense matrix-product rate of a GPU, TFLOP/s.
        share: Of it, in this work: assumed.
        price: Money per GPU-hour: assumed.
    """
    tflops = peak * share
    print(f"{share:.0%} of {peak:g} TFLOP/s, {MEMORY_GIB:g} GiB, {price:g} per GPU-hour: assumed, "
          "not measured\n")  # fmt: skip
    on = " / ".join(map(str, WORKERS))
    print(f"| recipe | units | parameters | steps | HVPs | units a block, on {on} GPUs | GPU-hours "
          "| hours | money | rows | trajectory | delete one unit | delete 1% |")  # fmt: skip
    print("|---" * 13 + "|")
    for recipe in RECIPES:
        plans = [plan_of(recipe, tflops, workers) for workers in WORKERS]
        work = plans[0].workload
        seconds = work.row_bytes / STATED_WRITE_BYTES
        cells = [
            recipe.name,
            f"{work.num_units:,}",
            f"{work.num_parameters / 1e6:.1f} M",
            f"{work.num_steps:,}",
            f"{work.num_products:.2e}",
            " / ".join(f"{plan.workload.block:,}" for plan in plans),
            " / ".join(f"{plan.worker_hours:,.0f}" for plan in plans),
            " / ".join(f"{plan.precompute_seconds / 3600:,.1f}" for plan in plans),
            " / ".join(f"{price * plan.worker_hours:,.0f}" for plan in plans),
            size(work.store_bytes),
            size(work.trajectory_bytes),
            duration(DELETE_SECONDS + seconds),
            duration(DELETE_SECONDS + work.num_units // 100 * seconds),
        ]
        print("| " + " | ".join(cells) + " |")
    print(f"\nMemory of a GPU holds {MEMORY_GIB * GIB / 1e9:.0f} GB; rows are read at "
          f"{STATED_WRITE_BYTES / 1e6:.0f} MB/s.")  # fmt: skip
