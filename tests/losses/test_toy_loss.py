"""The walk-through of docs/losses.md: a loss from outside the package, through the real train step."""

import doctest
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tiny import make_batch

import rdro_jax as rj
from rdro_jax.train.state import init_state

PATH = Path(__file__).parents[2] / "docs" / "losses.md"
PAGE = PATH.read_text()


def written_loss():
    """What the page's code block defines."""
    [code] = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "class Toy" in block]
    scope = {"__name__": __name__}
    exec(compile(code, "docs/losses.md", "exec"), scope)
    return scope["Toy"]


def test_the_loss_of_the_page_trains():
    batch = make_batch([(2, 3), (1, 4), (2, 2), (3, 5)], rows=2, slots=2, seq=16, labels=[True, False, True, False])
    loss, optimizer = written_loss()(beta=2.0), optax.sgd(0.1)

    def forward(params, batch):
        """A policy with one number per label."""
        return batch.reference_logps + jnp.where(batch.desirable, params["liked"], params["other"])

    state = init_state({"liked": jnp.float32(0.3), "other": jnp.float32(-0.2)}, loss, optimizer)
    state, metrics = jax.jit(rj.make_train_step(forward, loss, optimizer, num_microbatches=2))(state, batch)
    # values log(1 + exp(-+2 s)): by hand, slopes -+2 sigmoid(-+2 s) times the half of the examples
    values = np.log1p(np.exp([-0.6, -0.4]))
    np.testing.assert_allclose(metrics["loss"] / metrics["weight"], values.mean(), rtol=1e-6)
    np.testing.assert_allclose(state.params["liked"], 0.3 + 0.1 / (1 + np.exp(0.6)), rtol=1e-6)
    np.testing.assert_allclose(state.params["other"], -0.2 - 0.1 / (1 + np.exp(0.4)), rtol=1e-6)


def test_the_examples_of_the_page():
    assert doctest.testfile(str(PATH), module_relative=False).failed == 0


def test_every_loss_and_its_defaults_are_on_the_page():
    for member in rj.Loss.__args__:
        assert f"`{member().name}`" in PAGE
        for field in vars(member()):
            assert f"`{field}`" in PAGE, f"{member.__name__}.{field}"
