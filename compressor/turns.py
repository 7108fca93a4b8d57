"""Calls that are timed in turns, so that what disturbs the machine disturbs all of them. Nothing here imports torch."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Generator, Sequence


def rounds(
    calls: Sequence[Callable[[], object]], seed: int = 0, clock: Callable[[], int] = time.perf_counter_ns
) -> Generator[list[int], None, None]:
    """Nanoseconds (calls,) of one round after the other, without end: every call once, in a random order.

    The order is drawn anew for each round, so that no call always follows another. Garbage is collected before the
    first round and not again until the iterator is closed.
    """
    order, shuffle = list(range(len(calls))), random.Random(seed).shuffle  # noqa: S311 (no secret)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        while True:
            shuffle(order)
            times = [0] * len(calls)
            for place in order:
                start = clock()
                calls[place]()
                times[place] = clock() - start
            yield times
    finally:
        if collecting:
            gc.enable()
