"""Freed memory stays with the process, so that steps do not fault it in again."""

import platform
import subprocess
import sys

import pytest

from pipeline.heap import keep_freed_memory

_SCRIPT = """
import resource
from pipeline.heap import keep_freed_memory
{call}
import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    for _ in range(3):
        torch.ones(16 << 20)

step()
before = faults()
for _ in range(5):
    step()
print(faults() - before)
"""


def _faults(call: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT.format(call=call)],
        capture_output=True,
        check=True,
        text=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_buffers_of_a_second_step_cause_no_page_faults() -> None:
    assert _faults("") > 1_000
    assert _faults("keep_freed_memory()") < 100


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
