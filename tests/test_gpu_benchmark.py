"""The GPU benchmark runs to its end without a GPU, and without what a bare machine does not have."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet

from benchmarks import torchvision_resnet
from pipeline.approximators.recursion import low_precision
from pipeline.evaluation.throughput import CASES, Case, Subject, seconds_of

ROOT = Path(__file__).parent.parent
# Imports as on a machine with torch and numpy alone: the others are not found.
BARE = """
import runpy, sys
from importlib.machinery import PathFinder
ABSENT = set(sys.argv.pop(1).split(","))
class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in ABSENT else super().find_spec(name, path, target)
sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ABSENT = (
    "ray,pydantic,pydantic_core,pyarrow,zarr,numcodecs,safetensors,yaml,blake3,torchvision,scipy,"
    "sklearn,PIL,psutil,matplotlib,rich,typer,requests"
)
SECTIONS = "machine,correctness,throughput,recipe,engines,variants,layers,encoding"


def benchmark(*options: str) -> subprocess.CompletedProcess[str]:
    program = [
        sys.executable,
        "-c",
        BARE,
        ABSENT,
        "benchmarks/gpu.py",
        "--device",
        "cpu",
        "--quick",
    ]
    return subprocess.run(
        [*program, "--threads", "1", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def test_it_starts_and_ends_with_torch_and_numpy_alone() -> None:
    done = benchmark("--only", "machine,layers", "--seconds", "600")
    assert done.returncode == 0, done.stderr
    assert "without torchvision" in done.stdout.splitlines()[0]
    assert "failed" not in done.stdout


@pytest.mark.torture
def test_every_section_works_with_torch_and_numpy_alone(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = benchmark("--only", SECTIONS, "--seconds", "600", "--json", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert {row["section"] for row in rows} == {*SECTIONS.split(","), "transformer"}
    # torch's own limit on a CPU: vmap(jvp(grad)) of a convolution in bfloat16.
    troubles = [
        row
        for row in rows
        if "failed" in row["note"] and "forward-over-reverse" not in (row["form"] or "")
    ]
    assert not troubles
    errors = {
        kind: [
            row["error"] for row in rows if row["precision"] == kind and row["error"] is not None
        ]
        for kind in ("float64", "float32")
    }
    assert max(errors["float64"]) < 1e-12 and max(errors["float32"]) < 1e-3
    assert all(
        row["note"].endswith("bytes equal the store's")
        for row in rows
        if "GB/s of float32" in row["note"]
    )
    # K is 1 and 2, so the table leaves no row out. Above it: the machine, a blank line, two of head.
    shown = sum(row["shown"] for row in rows)
    assert len(done.stdout.splitlines()) == 4 + shown
    assert "without torchvision" in done.stdout.splitlines()[0]


ODD_SECTIONS = """
import os, sys, time
from argparse import Namespace
sys.path.insert(0, "benchmarks")
import gpu
def hang(bench):
    bench.emit("found in time")
    time.sleep(60)
def end(bench):
    os._exit(3)
def fail(bench):
    raise ValueError("a reason")
gpu.SECTIONS = tuple(gpu.Section(run.__name__, run, 1) for run in (hang, end, fail))
options = Namespace(device="cpu", quick=True, threads=1, only=[], seconds=0.9, start="fork")
for row in gpu.run_all(options):
    print(row.section, row.case, row.note, sep="/")
sys.argv = ["gpu.py", "--only", "nothing"]
gpu.main()
"""


@pytest.mark.torture
def test_a_section_that_hangs_ends_or_fails_costs_its_own_figures_alone() -> None:
    program = [sys.executable, "-c", ODD_SECTIONS]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.splitlines() == [
        "hang/found in time/",
        "hang/-/stopped after 1 s",
        "end/-/failed: ended with status 3",
        "fail/the section as a whole/failed: ValueError: a reason",
        "transformer/LoRA/skipped: the repository has no transformer yet",
    ]
    assert done.returncode == 2 and "no section nothing; there are hang" in done.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_formula_counts_what_torch_counts(case: Case) -> None:
    small = Case(case.name, case.build, case.inputs, 2)
    subject = Subject.of(small, torch.device("cpu"))
    at = subject.network().linearize(subject.w_P, subject.batch)
    # torch's counter does not know products that are added in place; in bfloat16 there are none.
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
        low_precision("cpu", "bfloat16"),
    ):
        at.hessian_products(subject.tangents(2), None)
    # It counts the sums of a normalisation as products, which the formula leaves out.
    within = 1e-3 if "resnet" in case.name else 0.0
    assert counter.get_total_flops() / 2 == pytest.approx(subject.flops_per_product, rel=within)


def test_the_stand_in_for_torchvision_is_the_same_network() -> None:
    settings = {"num_classes": 10, "zero_init_residual": True, "norm_layer": torch.nn.BatchNorm2d}
    theirs = resnet.ResNet(resnet.BasicBlock, [2, 2, 2, 2], **settings).eval()
    ours = torchvision_resnet.ResNet(torchvision_resnet.BasicBlock, [2, 2, 2, 2], **settings).eval()
    assert [name for name, _ in ours.named_children()] == [n for n, _ in theirs.named_children()]
    for name, parameter in theirs.named_parameters():
        if name.endswith("bn2.weight"):  # at zero the blocks would count for nothing
            torch.nn.init.constant_(parameter, 0.5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.torture
def test_the_time_of_a_call_is_its_own() -> None:
    calls: list[int] = []
    seconds = seconds_of(lambda: calls.append(1), torch.device("cpu"), 1e-4)
    assert 0 < seconds < 1 and len(calls) >= 2
