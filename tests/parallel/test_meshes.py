"""The whole step on eight simulated devices, in every kind of mesh, against one; and what the devices exchange."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import optax
import pytest
from tiny import CONFIG, make_batch

from rdro_jax.losses import RDRO, head
from rdro_jax.models import abstract_params, init_params
from rdro_jax.optim import OptimizerConfig, make_optimizer
from rdro_jax.parallel import MeshConfig, make_mesh, rows_sharding
from rdro_jax.train import completion_logps, init_state, make_train_step
from rdro_jax.train.state import state_shardings

MODEL = dataclasses.replace(CONFIG, vocab_size=256)
LENGTHS = [(3, 9), (2, 4), (5, 11), (4, 20), (2, 3), (6, 2), (1, 13), (9, 9), (3, 17), (2, 8), (8, 1), (4, 4), (2, 25)]
BATCH = make_batch(LENGTHS, rows=8, labels=[n in (0, 1, 2, 5, 9) for n in range(len(LENGTHS))])
LOSS, OPTIMIZER = RDRO(alpha=0.39), make_optimizer(OptimizerConfig(learning_rate=1e-3, weight_decay=0.01), num_steps=10)
COLLECTIVE = re.compile(r"= (.*?) (?:all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


@functools.cache
def start():
    return init_state(init_params(MODEL, jax.random.key(0)), LOSS, OPTIMIZER)


def make_step(mesh=None):
    return make_train_step(lambda params, batch: completion_logps(params, MODEL, batch, mesh=mesh), LOSS, OPTIMIZER)


@pytest.fixture(scope="module", autouse=True)
def several_blocks():
    """Blocks so small that a gathered block is no gathered head."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "MAX_BLOCK", 32)
        yield


@pytest.fixture(scope="module")
def alone(several_blocks):
    """State and sums after one step on one device."""
    return jax.jit(make_step())(start(), BATCH)


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(8, 1, 1),
        MeshConfig(1, 8, 1),
        MeshConfig(2, 2, 2),
        MeshConfig(1, 4, 2),
        MeshConfig(1, 2, 1, context=4),
    ],
    ids=["data 8", "fsdp 8", "2 x 2 x 2", "fsdp 4, tensor 2", "fsdp 2, context 4"],
)
def test_eight_devices_equal_one(mesh, alone, capfd):
    mesh = make_mesh(mesh)
    shardings = state_shardings(abstract_params(MODEL), LOSS, OPTIMIZER, mesh)
    state, batch = jax.device_put(start(), shardings), jax.device_put(BATCH, rows_sharding(mesh))
    compiled = jax.jit(make_step(mesh), out_shardings=(shardings, None)).lower(state, batch).compile()
    # Said by the partitioner where it gives up and gathers; only a compilation that is not cached says anything.
    assert "rematerialization" not in capfd.readouterr().err
    assert largest_exchange(compiled.as_text()) <= largest_part(state)
    many_state, many = compiled(state, batch)
    one_state, one = alone
    np.testing.assert_allclose(many["loss"] / many["weight"], one["loss"] / one["weight"], rtol=1e-5)
    np.testing.assert_allclose(many["grad_norm"], one["grad_norm"], rtol=1e-5)
    placed = jax.tree.map(lambda leaf, wanted: leaf.sharding.is_equivalent_to(wanted, leaf.ndim), many_state, shardings)
    assert all(jax.tree.leaves(placed))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), many_state.params, one_state.params)
    # The first moment after one step is a tenth of the clipped gradient.
    moments = [optax.tree_utils.tree_get(state.opt_state, "mu") for state in (many_state, one_state)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max()), *moments)


def largest_exchange(hlo):
    """Numbers in the largest array that devices send each other."""
    found = re.findall(r"\w+\[([\d,]*)\]", " ".join(COLLECTIVE.findall(hlo)))
    return max(math.prod(int(size) for size in shape.split(",") if size) for shape in found)


def largest_part(state):
    """Numbers that may be sent at once: a device's part of the table, a whole layer's matrix, its rows' activations.

    Far less than the table or a stack of layers, unless parameters are replicated.
    """
    table = state.params["embed_tokens"]["embedding"]
    activations = BATCH.tokens.size // 4 * MODEL.d_model
    return max(table.addressable_shards[0].data.size, MODEL.d_model * MODEL.d_ff, activations)
