"""Write, read and sum ResNet-18 rows by encoding, against numpy on a plain file.

    python benchmarks/store.py FOLDER [--rows 64] [--repeats 5] [--plot docs/store_tradeoff.svg]

Rows are leave-one-out differences of ResNet-18 (11,181,642 parameters, 10 classes): the parameters
after eight steps of SGD without one sample minus those with it, on random 32x32 images with a
random mean per class. Their blocks are as heavy-tailed as real rows', but they are no rows of a
finished run. All rows after the eighth repeat earlier ones with another sign and size.

Times are medians of interleaved repeats in one process, files in the page cache.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torchvision
import zarr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.heap import keep_freed_memory
from storage import ApproximatorStore, StoreSpec
from storage.encoding import ENCODINGS, decoder

Rows = npt.NDArray[np.float32]
NUM_SUMMED = 16


def resnet18_rows(num_rows: int) -> Rows:
    """Leave-one-out rows, float32 (num_rows, 11181642)."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = torchvision.models.resnet18(num_classes=10).eval()
    labels = torch.arange(64) % 10
    images = torch.randn(64, 3, 32, 32) + torch.randn(10, 3, 32, 32)[labels]
    start = [parameter.detach().clone() for parameter in net.parameters()]

    def trained_without(sample: int) -> torch.Tensor:
        with torch.no_grad():
            for parameter, value in zip(net.parameters(), start, strict=True):
                parameter.copy_(value)
        for step in range(8):
            batch = torch.arange(16) + 16 * (step % 4)
            batch = batch[batch != sample]
            loss = torch.nn.functional.cross_entropy(net(images[batch]), labels[batch])
            gradients = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                    parameter.sub_(0.01 * (gradient + 1e-2 * parameter))
        return torch.cat([parameter.detach().reshape(-1) for parameter in net.parameters()])

    whole = trained_without(-1)
    different = [(trained_without(7 * i) - whole).numpy() for i in range(min(num_rows, 8))]
    signs = [1.0, -0.5, 0.75, -1.25, 1.5, -0.875, 0.625, -2.0]
    rows = [different[i % 8] * np.float32(signs[i // 8]) for i in range(num_rows)]
    return np.stack(rows)


def median_seconds(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each work, run in turn so that disturbances hit all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def create(folder: Path, rows_NP: Rows, encoding: str, block: int) -> ApproximatorStore:
    """Write a store of all rows."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = [str(i) for i in range(len(rows_NP))]
    spec = StoreSpec(rows_NP.shape[1], encoding, block, row_error_cap=0.5)  # type: ignore[arg-type]
    store = ApproximatorStore.create(folder / "a.zarr", names, [1] * len(names), spec)
    for b in range(store.num_blocks):
        rows = store.block_units(b)
        store.write_rows(b, rows_NP[rows.start : rows.stop])
    store.merge()
    return store


class PlainFiles:
    """The bytes of a store's first rows in one plain file each, without any check."""

    def __init__(self, folder: Path, encoding: str, num_parameters: int) -> None:
        self.encoding, self.num_parameters = encoding, num_parameters
        self.split = ENCODINGS[encoding].code_bytes(num_parameters)
        self.files = []
        for row in range(NUM_SUMMED):
            group = folder / f"a.zarr/generation-0/{encoding}"
            parts = [group / f"{array}/c.{row}.0" for array in ("codes", "scales")]
            file = folder / f"plain-{row}"
            file.write_bytes(b"".join(part.read_bytes() for part in parts if part.exists()))
            self.files.append(file)

    def add_codes(self) -> npt.NDArray[np.float64]:
        """Read each file and add its codes as they are, without scales: the least work there is."""
        total = np.zeros(self.num_parameters)
        kind = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}.get(self.encoding, "i1")
        for file in self.files:
            values = np.fromfile(file, np.uint8)[: self.split].view(kind)
            total[: values.size] += values
        return total

    def add_rows(self) -> npt.NDArray[np.float64]:
        """Read each file, decode it whole, and add the row: what a program without tiles does."""
        total = np.zeros(self.num_parameters)
        row = np.empty((1, self.num_parameters), np.float32)
        for file in self.files:
            data = np.fromfile(file, np.uint8)
            codes, scales = data[: self.split], data[self.split :].view("<u2")
            decoder(self.encoding, codes[None], scales[None]).write(row)
            total += row[0]
        return total


def sum_part(url: str, rows: list[int]) -> float:
    """Sum some rows in a worker process, which keeps the sum, as a cluster's workers do."""
    return float(ApproximatorStore.open(url).sum_rows_at(rows)[0])


def measure(folder: Path, rows_NP: Rows, encoding: str, repeats: int) -> dict[str, float]:
    """All figures of one encoding."""
    start = time.perf_counter()
    create(folder, rows_NP, encoding, block=8)
    write_seconds = time.perf_counter() - start
    store = ApproximatorStore.open(folder / "a.zarr")
    facts, plain = store.facts(), PlainFiles(folder, encoding, rows_NP.shape[1])
    summed = list(range(NUM_SUMMED))
    seconds = median_seconds(
        {
            "sum": lambda: store.sum_rows_at(summed),
            "codes": plain.add_codes,
            "rows": plain.add_rows,
            "sum2": lambda: store.sum_rows_at(summed, num_threads=2),
            "read": lambda: store.read_rows_at([3]),
        },
        repeats,
    )
    return {
        "bytes_per_parameter": facts.bytes_per_parameter,
        "row_error": facts.row_error_max,
        "write_ms": 1e3 * write_seconds / len(rows_NP),
        "read_ms": 1e3 * seconds["read"],
        "sum_s": seconds["sum"],
        "to_plain_codes": seconds["codes"] / seconds["sum"],
        "to_plain_rows": seconds["rows"] / seconds["sum"],
        "two_threads": seconds["sum"] / seconds["sum2"],
    }


def two_processes(folder: Path, repeats: int) -> float:
    """How many times faster two warm processes on two halves are than one on the whole."""
    url, rows = str(folder / "a.zarr"), list(range(NUM_SUMMED))
    halves = [rows[: NUM_SUMMED // 2], rows[NUM_SUMMED // 2 :]]
    with ProcessPoolExecutor(2) as pool:

        def both() -> None:
            list(pool.map(sum_part, [url] * 2, halves))

        def one() -> None:
            pool.submit(sum_part, url, rows).result()

        both()
        seconds = median_seconds({"one": one, "two": both}, repeats)
    return seconds["one"] / seconds["two"]


def draw(figures: dict[str, dict[str, float]], path: Path) -> None:
    """Bytes per parameter against row error, one point per encoding."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "store"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, found in figures.items():
        if found["row_error"]:
            axes.plot(found["bytes_per_parameter"], found["row_error"], "o", color="tab:blue")
            axes.annotate(
                name,
                (found["bytes_per_parameter"], found["row_error"]),
                textcoords="offset points",
                xytext=(8, 4),
            )
    axes.set(
        yscale="log",
        ylim=(1e-4, 0.3),
        xlim=(0, 2.5),
        xlabel="bytes per parameter",
        ylabel="relative row error (L2)",
        title="ResNet-18 rows, 11.2 million parameters",
    )
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure every encoding and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}, "
        f"zarr {zarr.__version__}, {options.rows} rows, median of {options.repeats}"
    )
    rows_NP = resnet18_rows(options.rows)
    figures = {}
    for encoding in ENCODINGS:
        figures[encoding] = measure(options.folder, rows_NP, encoding, options.repeats)
        if encoding == "int8":
            figures[encoding]["two_processes"] = two_processes(options.folder, options.repeats)
        print(encoding, json.dumps({k: float(f"{v:.4g}") for k, v in figures[encoding].items()}))
    shutil.rmtree(options.folder)
    if options.plot:
        draw(figures, options.plot)


if __name__ == "__main__":
    main()
