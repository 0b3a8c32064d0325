"""Binary classifier optimisation (Jung et al. 2024, arXiv:2404.04656)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rdro_jax.losses.base import LossInputs, Weighted
from rdro_jax.losses.numerics import Scalar
from rdro_jax.losses.preference import PreferenceLoss, check_positive


def bco(
    policy_logps: Float[Array, "examples"],
    reference_logps: Float[Array, "examples"],
    desirable: Bool[Array, "examples"],
    delta: Scalar,
    *,
    beta: Scalar = 0.1,
    undesirable_weight: Float[Array, "examples"] | float = 1.0,
) -> Float[Array, "examples"]:
    """BCO loss of every example, in nats; the batch loss is the mean.

    With s = policy_logps - reference_logps and the reward shift `delta`, through which no gradient flows:

        softplus(-(beta s - delta)) on desirable examples,   undesirable_weight softplus(beta s - delta) on others

    `delta` is the mean of beta s over the training examples seen so far. `undesirable_weight` is for
    `udm_weights`, where desirable and undesirable prompts differ.

    Source: Jung et al. 2024, arXiv:2404.04656. Differs from it in the shift, a running mean over all examples as in
    TRL, where the paper averages the two classes' means.

    >>> import jax.numpy as jnp
    >>> policy, reference = jnp.array([-10.2, -14.1]), jnp.array([-10.9, -13.6])  # nats, one for each completion
    >>> [f"{value:.3f}" for value in bco(policy, reference, jnp.array([True, False]), delta=0.01)]
    ['0.664', '0.664']
    """
    margin = beta * (policy_logps - reference_logps) - jax.lax.stop_gradient(delta)
    return jnp.where(desirable, jax.nn.softplus(-margin), undesirable_weight * jax.nn.softplus(margin))


def udm_weights(
    desirable_probability: Float[Array, "examples"], *, smallest: float = 0.5, largest: float = 10.0
) -> Float[Array, "examples"]:
    """Weights that make undesirable prompts look like desirable ones: the odds p / (1 - p), clipped, without unit.

    `desirable_probability` is a classifier's P(desirable | prompt) (underlying distribution matching).

    Source: Jung et al. 2024, arXiv:2404.04656.

    >>> import jax.numpy as jnp
    >>> [f"{weight:.2f}" for weight in udm_weights(jnp.array([0.1, 0.6, 0.99]))]
    ['0.50', '1.50', '10.00']
    """
    odds = desirable_probability / jnp.maximum(1 - desirable_probability, 1e-6)
    return jnp.clip(odds, smallest, largest)


@dataclass(frozen=True)
class BCO(PreferenceLoss):
    """Binary classifier optimisation from unpaired data (arXiv:2404.04656)."""

    traced: ClassVar[tuple[str, ...]] = (*PreferenceLoss.traced, "beta")

    name: Literal["bco"] = "bco"
    beta: float = 0.1
    """Inverse temperature of the reward, per nat."""

    def __post_init__(self):
        super().__post_init__()
        check_positive("beta", self.beta)

    def init_running(self) -> Any:
        """Return the mean reward so far and the examples it was taken over."""
        return {"delta": jnp.zeros((), jnp.float32), "examples": jnp.zeros((), jnp.float32)}

    def statistics(self, x: LossInputs, mismatched: LossInputs | None, running: Any) -> tuple[Any, Any]:
        """Return the mean of beta s over all training examples, this batch's included."""
        rewards = self.beta * (x.policy_logps - x.reference_logps)
        present = x.weight > 0
        new = jnp.sum(present, dtype=jnp.float32)
        examples = running["examples"] + new
        change = jnp.sum(jnp.where(present, rewards - running["delta"], 0.0)) / jnp.maximum(examples, 1.0)
        delta = jax.lax.stop_gradient(running["delta"] + change)
        return {"delta": delta}, {"delta": delta, "examples": examples}

    def __call__(self, x: LossInputs) -> Weighted:
        """Return the loss of each example, weighted by its own weight."""
        values = bco(x.policy_logps, x.reference_logps, x.desirable, x.statistics["delta"], beta=self.beta)
        return self.unpaired(values, x)
