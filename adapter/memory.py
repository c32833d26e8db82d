"""How a process that maps many messages treats its memory.

A fifth of its time would go into giving it back and asking for it anew. The C library gives the top of its heap back
after every batch, and each page that the next batch touches is a fault. Python looks for cycles every 700 objects,
and what a message becomes has none.
"""

import ctypes
import gc
from contextlib import suppress

#: mallopt's names of what to set (malloc.h of glibc), and bytes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 64_000_000
LARGE_BYTES = 1_000_000  #: a block of so much, as the body of a batch, is asked for and given back by itself
OBJECTS_BETWEEN_LOOKS = 20_000


def keep() -> None:
    """Keep up to KEPT_BYTES that are free for what comes next, and look for cycles less often."""
    gc.freeze()
    gc.set_threshold(OBJECTS_BETWEEN_LOOKS, 50, 100)
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
