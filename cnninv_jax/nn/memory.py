"""Memory that a process has freed, kept for what it asks for next.

XLA asks the C library for the temporaries of a program at every call. glibc returns what is large to the system and
gets it back page by page, each filled with zeros. A training step of a three-layer CNN (256, 256, 128 channels, batch
128) takes 1.3 times the processor's time for that on two cores, features 1.2 times (`benchmarks/nn.py`).
"""

from __future__ import annotations

import ctypes
import platform

#: Numbers of <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_NEVER, _AT_ONCE = 2**31 - 1, 1 << 28


def keep_freed_pages() -> bool:
    """Tell the C library to keep freed memory, from now on and for the whole process; to be called early, before JAX.

    The process then holds the most memory it ever used until it ends. The environment variables
    ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_TOP_PAD_`` and ``MALLOC_ARENA_MAX`` do the same
    from outside.

    Returns:
        Whether it does: glibc (Linux) can, other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # Never a mapping of its own, never anything back, large steps, and one heap: those of threads give back more.
    choices = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _AT_ONCE), (_ARENA_MAX, 1))
    done = [mallopt(*choice) == 1 for choice in choices]
    return all(done)


__all__ = ["keep_freed_pages"]
