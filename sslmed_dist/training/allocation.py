"""The C library's allocator, told to keep what a training step frees: the next step asks for it again.

glibc gives large blocks back to the system at once and gets them again page by page, zeroed. A CPU step of ResNet-18
at batch 128 met 1.5 million page faults that way and took 1.5 times as long (2 cores of an AMD EPYC, 2026-11-24).
"""

import ctypes
import platform

# mallopt's parameter numbers, malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST_INT = 2**31 - 1
# For a process whose training runs in another thread than its first (Ray's workers): a thread's own arena gives every
# block above 64 MiB back to the system whatever it is advised, so all threads have to share the one that does not.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}


def keep_freed_memory() -> bool:
    """Serve blocks below 1 GiB from the heap, grow it in steps of 128 MiB, never shrink it. Speed alone changes.

    Returns whether the C library is one that takes the advice (glibc); others are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    advise = ctypes.CDLL(None).mallopt
    advice = {M_MMAP_THRESHOLD: 1 << 30, M_TRIM_THRESHOLD: LARGEST_INT, M_TOP_PAD: 1 << 27}
    return all([advise(parameter, value) == 1 for parameter, value in advice.items()])
