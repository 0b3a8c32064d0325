"""Checkpoints: what is saved comes back bit for bit, a half-written one never counts, old ones go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdro_jax.checkpoint import CheckpointConfig, CheckpointWriter, checkpoint_path, list_steps, load_items, load_meta
from rdro_jax.errors import CheckpointError


def items(value):
    return {"params": {"kernel": jnp.full((3, 2), value)}, "opt_state": (jnp.arange(4), {"mu": jnp.full(2, value)})}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def test_newest_two_are_kept_and_come_back(tmp_path):
    writer = CheckpointWriter(tmp_path, CheckpointConfig(save_total_limit=2))
    for step in (5, 10, 100):
        writer.save(step, items(step / 3), {"config": {"seed": step}})
    writer.wait()
    assert list_steps(tmp_path) == [10, 100]
    assert load_meta(tmp_path, 100) == {"config": {"seed": 100}}
    wanted = items(100 / 3)
    jax.tree.map(np.testing.assert_array_equal, load_items(tmp_path, 100, abstract(wanted)), wanted)
    only = load_items(tmp_path, 10, {"params": abstract(wanted)["params"]})
    np.testing.assert_array_equal(only["params"]["kernel"], np.full((3, 2), np.float32(10 / 3)))


def test_a_half_written_checkpoint_does_not_count(tmp_path):
    writer = CheckpointWriter(tmp_path, CheckpointConfig())
    writer.save(1, items(1.0), {})
    writer.wait()
    (tmp_path / "checkpoint-2.orbax-checkpoint-tmp-0").mkdir()
    (tmp_path / "checkpoint-3").mkdir()
    assert list_steps(tmp_path) == [1]


def test_other_shapes_are_refused(tmp_path):
    writer = CheckpointWriter(tmp_path, CheckpointConfig())
    writer.save(1, items(1.0), {})
    writer.wait()
    other = {"params": {"kernel": jax.ShapeDtypeStruct((5, 2), jnp.float32)}}
    with pytest.raises(CheckpointError, match=str(checkpoint_path(tmp_path, 1))):
        load_items(tmp_path, 1, other)
