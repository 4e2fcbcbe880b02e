"""What the C library does with memory that NumPy gives back."""

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed(*, trim_bytes: int, mmap_bytes: int) -> None:
    """Let glibc keep freed memory for the next scan.

    By default it gives that of a volume back to the system each time, and to get it anew, page by page, can take longer
    than what is computed in it.

    Args:
        trim_bytes: kept per heap.
        mmap_bytes: size from which arrays have memory of their own, which is always given back.
    """
    with suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, trim_bytes)
        mallopt(_M_MMAP_THRESHOLD, mmap_bytes)
