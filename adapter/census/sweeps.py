"""How often Python looks for cycles while many messages are read."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def seldom_swept() -> Iterator[None]:
    """Meanwhile Python looks for cycles less often: messages make none, and to look takes an eighth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
