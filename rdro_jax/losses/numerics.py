"""Functions of log-ratios that stay finite, with finite gradients, where their textbook forms do not."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = float | int | Float[Array, ""]


def log(x: Scalar) -> Scalar:
    """log(x) of a number, to full precision where Python knows it, or of one that is traced."""
    return math.log(x) if isinstance(x, int | float) else jnp.log(x)


def is_zero(x: Scalar) -> bool:
    """Whether x is the number 0; what is traced is not, as a term that is left out makes another program."""
    return isinstance(x, int | float) and x == 0


def lin_exp(x: Float[Array, "examples"], knee: Scalar | Float[Array, "examples"]) -> Float[Array, "examples"]:
    """exp(x), continued above `knee` by its tangent: exp overflows float32 at 88."""
    return jnp.exp(jnp.minimum(x, knee)) + jnp.exp(knee) * jax.nn.relu(x - knee)


def log1mexp(x: Float[Array, "examples"]) -> Float[Array, "examples"]:
    """log(1 - exp(-x)) for x > 0, to full precision at both ends.

    Source: Maechler 2012, "Accurately computing log(1 - exp(-|a|))".
    """
    near = x < 0.6931472  # log 2
    small = jnp.log(-jnp.expm1(-x))
    # Both branches are differentiated, and this one's slope is infinite near 0: hence a where inside the where.
    large = jnp.log1p(-jnp.exp(-jnp.where(near, 1.0, x)))
    return jnp.where(near, small, large)
