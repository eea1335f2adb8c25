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

fewest = faults()
for _ in range(20):
    before = faults()
    step()
    fewest = min(fewest, faults() - before)
print(fewest)
"""


def _fewest_faults(call: str) -> int:
    """The page faults of the step that caused fewest.

    Not of every step: a small block may be cut out of a freed buffer, and the next buffer then
    lies on new pages; and the kernel may take pages back under pressure.
    """
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT.format(call=call)],
        capture_output=True,
        check=True,
        text=True,
    )
    return int(done.stdout)


@pytest.mark.torture
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_a_step_reuses_the_pages_of_those_before() -> None:
    assert _fewest_faults("") > 1_000
    assert _fewest_faults("keep_freed_memory()") < 100


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
