"""The C library's heap, for engines that share a process: what one frees must not slow another.

glibc gives large blocks back to the system when they are freed, or keeps them, depending on what
was freed before. New pages are dear in a virtual machine (1.4 us for each of 4 KB measured): eager
PyTorch in bf16 ran at 10,500 or 13,500 tokens/s (16 x 128), depending on who had been there before.
PyTorch's tuning guide advises an allocator that keeps memory, too.
"""

from __future__ import annotations

import ctypes
import platform

# From malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_MOST = 2**31 - 1

_kept = False


def keep_freed_memory() -> bool:
    """Have malloc take all blocks from its heap, and keep what is freed; for the whole process.

    Returns:
        whether it does: only glibc can be told.
    """
    global _kept
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        _kept = all((mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, _MOST)))
    return _kept


def describe() -> str:
    """What a record of the machine says."""
    return "malloc keeps freed memory" if _kept else "malloc as it comes"
