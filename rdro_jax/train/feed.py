"""Batches on their way to the devices, one ahead of the step."""

import time
from collections.abc import Iterable, Iterator

from jax.sharding import NamedSharding

from rdro_jax.batch import Batch
from rdro_jax.parallel import global_arrays


class Feed:
    """Batches on the devices: when one is handed out, the next is there already."""

    def __init__(self, batches: Iterable[Batch], sharding: NamedSharding):
        self._batches, self._sharding = batches, sharding
        self.waited = 0.0
        """Seconds spent on waiting for batches and placing them, so far."""

    def __iter__(self) -> Iterator[Batch]:
        source = iter(self._batches)
        ahead = self._next(source)
        while ahead is not None:
            batch, ahead = ahead, self._next(source)
            yield batch

    def _next(self, source: Iterator[Batch]) -> Batch | None:
        start = time.monotonic()
        batch = next(source, None)
        placed = None if batch is None else global_arrays(batch, self._sharding)
        self.waited += time.monotonic() - start
        return placed
