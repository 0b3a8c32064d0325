"""What every loss receives and returns."""

from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Bool, Float, Int


class LossInputs(NamedTuple):
    """Examples flattened out of their packed rows; filler has weight 0."""

    policy_logps: Float[Array, "examples"]
    """Completion log-probability under the policy, in nats, summed over the completion's tokens."""
    reference_logps: Float[Array, "examples"]
    """The same under the reference, in nats."""
    lengths: Int[Array, "examples"]
    """Scored completion tokens of each example."""
    desirable: Bool[Array, "examples"]
    weight: Float[Array, "examples"]
    statistics: Any = ()
    """What the loss declared that couples examples, taken over the global batch without gradient; () for most."""


class Weighted(NamedTuple):
    """One value and one weight per example. The step divides sum(values * weights) by sum(weights) once, globally."""

    values: Float[Array, "examples"]
    weights: Float[Array, "examples"]


class LossFunction(Protocol):
    """A loss as the train step sees it: a function of examples. Every member of `rdro_jax.losses.Loss` is one.

    Members also say `needs_reference`: whether they read `reference_logps`, which then must be known.
    """

    def __call__(self, x: LossInputs) -> Weighted:
        """Return one value and one weight per example, never reduced."""
        ...
