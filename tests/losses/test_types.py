"""Shapes and types of public losses are checked in tests: this asks the checker itself."""

import jax.numpy as jnp
import jaxtyping
import pytest

from rdro_jax import losses

NUMBERS, LABELS = jnp.zeros(2), jnp.array([True, False])


def test_a_whole_number_is_a_float():
    assert losses.kto(NUMBERS, NUMBERS, LABELS, 0.0, beta=1).shape == (2,)


def test_shapes_that_differ_are_refused():
    with pytest.raises(jaxtyping.TypeCheckError):
        losses.kto(NUMBERS, jnp.zeros(3), LABELS, 0.0)
