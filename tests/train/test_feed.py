"""Batches are on the device one ahead of the step, and waiting for them is counted."""

import time

import jax
import numpy as np

from rdro_jax.parallel import MeshConfig, make_mesh, rows_sharding
from rdro_jax.train.feed import Feed

SHARDING = rows_sharding(make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))


def test_the_next_batch_is_placed_before_this_one_is_handed_out():
    read = []

    def batches():
        for number in range(3):
            read.append(number)
            time.sleep(0.02)
            yield {"rows": np.full(2, number)}

    feed = Feed(batches(), SHARDING)
    seen = [(int(batch["rows"][0]), isinstance(batch["rows"], jax.Array), len(read)) for batch in feed]
    assert seen == [(0, True, 2), (1, True, 3), (2, True, 3)]
    assert feed.waited >= 0.06
    assert list(Feed([], SHARDING)) == []
