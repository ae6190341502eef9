"""The C library's memory, set for a training that asks for the same large blocks at every step."""

import ctypes
import sys

# As <malloc.h> numbers them.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Lets freed memory stay with the process, up to 2 GiB, for its next request.

    By default glibc gives large blocks back to the system at once, and each step of a training
    pays for having them mapped and cleared again, page by page.

    Returns:
        Whether the C library is one that can be told so.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # The greatest threshold that glibc takes for blocks of their own is 32 MiB on 64 bits.
    settings = ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20))
    taken = [mallopt(option, value) for option, value in settings]
    return taken == [1, 1, 1]
