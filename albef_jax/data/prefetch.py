"""Work that is done ahead, in background threads."""

import collections
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

PREFETCH = 2  # batches that are made ahead


def num_workers(data_config) -> int:
    """Threads that load examples: `data.workers`, or one per core if that is 0."""
    return data_config.workers or os.cpu_count() or 1


def prefetch(make: Callable, items: Iterable[int], workers: int) -> Iterator[dict]:
    """Yields make(item, parallel_map) for each item in order, `PREFETCH` items ahead.

    The threads only ever do work that ends by itself, so nothing can block on a consumer that went
    away. Closing the iterator (or an exception in its consumer's loop) ends them.
    """
    items = iter(items)
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(workers, "albef-data")
        makers = ThreadPoolExecutor(PREFETCH, "albef-batch")
        stack.callback(pool.shutdown)
        stack.callback(makers.shutdown, cancel_futures=True)
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)  # runs first
        pending = collections.deque()
        for item in items:
            pending.append(makers.submit(make, item, pool.map))
            if len(pending) > PREFETCH:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
