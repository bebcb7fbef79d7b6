"""Memory of the C library, which PyTorch takes its tensors on the CPU from."""

from __future__ import annotations

import ctypes
import platform

# The parameters of mallopt(3) in malloc.h, and the largest values that the first takes and an int holds.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
BLOCK, KEPT = 2**30, 2**31 - 1  # bytes


def keep_freed_memory() -> None:
    """Lets this process keep up to 2 GiB of what it frees, where its C library is glibc; nothing elsewhere.

    Otherwise large tensors come fresh from the kernel in every step, which clears each of their pages: a
    tenth of the time of a network of small images (docs/performance.md).
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, BLOCK)
        mallopt(M_TRIM_THRESHOLD, KEPT)
