"""Keeping freed memory for the next step.

A step allocates buffers of many megabytes and frees them. The GNU C library hands such memory back
to the kernel, which must then clear every page anew: that was up to half of a step's time, and
differed from process to process (docs/benchmarks.md).
"""

import ctypes
import sys

# Names and numbers from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_NEVER = -1
_GROWTH_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Have the C library keep all memory that this process frees.

    For programs, not for libraries: it cannot be undone. The memory in use at the peak stays with
    the process, so it suits one that computes and ends.

    Returns:
        Whether this C library could be told (glibc); elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = {_M_TRIM_THRESHOLD: _NEVER, _M_TOP_PAD: _GROWTH_BYTES, _M_MMAP_MAX: 0}
    accepted = [mallopt(name, value) == 1 for name, value in wanted.items()]
    return all(accepted)
