"""Kahneman-Tversky optimisation (arXiv:2402.01306) and its anchored form, APO-zero (arXiv:2408.06266)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rdro_jax.losses.base import LossInputs, Weighted
from rdro_jax.losses.numerics import Scalar
from rdro_jax.losses.preference import PreferenceLoss, check_not_negative, check_positive


def kto(
    policy_logps: Float[Array, "examples"],
    reference_logps: Float[Array, "examples"],
    desirable: Bool[Array, "examples"],
    kl: Scalar,
    *,
    beta: Scalar = 0.1,
    desirable_weight: Scalar = 1.0,
    undesirable_weight: Scalar = 1.0,
) -> Float[Array, "examples"]:
    """KTO loss of every example, without unit; the batch loss is the mean.

    With s = policy_logps - reference_logps and z0 = max(0, kl), through which no gradient flows:

        desirable_weight (1 - sigmoid(beta (s - z0))) on desirable examples
        undesirable_weight (1 - sigmoid(beta (z0 - s))) on others

    `kl` estimates KL(policy || reference), in nats: the mean of s over prompts with other prompts' completions.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, equation 8.

    >>> import jax.numpy as jnp
    >>> policy, reference = jnp.array([-10.2, -14.1]), jnp.array([-10.9, -13.6])  # nats, one for each completion
    >>> [f"{value:.3f}" for value in kto(policy, reference, jnp.array([True, False]), kl=0.2)]
    ['0.488', '0.483']
    """
    baseline = jax.lax.stop_gradient(jnp.maximum(kl, 0.0))
    margin = beta * (policy_logps - reference_logps - baseline)
    # 1 - sigmoid(m) = sigmoid(-m), which keeps its digits where sigmoid(m) rounds to 1.
    return jnp.where(desirable, desirable_weight * jax.nn.sigmoid(-margin), undesirable_weight * jax.nn.sigmoid(margin))


def apo_zero_unpaired(
    policy_logps: Float[Array, "examples"],
    reference_logps: Float[Array, "examples"],
    desirable: Bool[Array, "examples"],
    *,
    beta: Scalar = 0.1,
) -> Float[Array, "examples"]:
    """APO-zero loss of every example, without unit: KTO anchored at kl = 0; the batch loss is the mean.

    Source: D'Oosterlinck et al. 2024, arXiv:2408.06266, whose pairs are taken apart.

    >>> import jax.numpy as jnp
    >>> policy, reference = jnp.array([-10.2, -14.1]), jnp.array([-10.9, -13.6])  # nats, one for each completion
    >>> [f"{value:.3f}" for value in apo_zero_unpaired(policy, reference, jnp.array([True, False]))]
    ['0.483', '0.488']
    """
    return kto(policy_logps, reference_logps, desirable, 0.0, beta=beta)


@dataclass(frozen=True)
class KTO(PreferenceLoss):
    """Kahneman-Tversky optimisation from unpaired data (arXiv:2402.01306)."""

    needs_mismatched: ClassVar[bool] = True

    traced: ClassVar[tuple[str, ...]] = (*PreferenceLoss.traced, "beta", "desirable_weight", "undesirable_weight")

    name: Literal["kto"] = "kto"
    beta: float = 0.1
    """Inverse temperature of the reward, per nat."""
    desirable_weight: float = 1.0
    """Factor of desirable examples' values."""
    undesirable_weight: float = 1.0
    """Factor of undesirable examples' values."""
    kl_scope: Literal["global", "microbatch"] = "global"
    """Rows the KL is estimated from: the global batch, or each micro-batch by itself as TRL does."""

    def __post_init__(self):
        super().__post_init__()
        check_positive("beta", self.beta)
        check_not_negative("desirable_weight", self.desirable_weight)
        check_not_negative("undesirable_weight", self.undesirable_weight)

    @property
    def statistics_scope(self) -> Literal["global", "microbatch"]:
        """Where the KL is estimated."""
        return self.kl_scope

    def statistics(self, x: LossInputs, mismatched: LossInputs | None, running: Any) -> tuple[Any, Any]:
        """Return the KL estimate in nats, not clamped: below 0 it says that the estimate is noise."""
        assert mismatched is not None, "the loader gives mismatched rows to a loss that says needs_mismatched"
        log_ratio = mismatched.policy_logps - mismatched.reference_logps
        total = jnp.sum(jnp.where(mismatched.weight > 0, mismatched.weight * log_ratio, 0.0))
        weight = jnp.sum(mismatched.weight)
        return {"kl": jax.lax.stop_gradient(total / jnp.where(weight > 0, weight, 1.0))}, running

    def __call__(self, x: LossInputs) -> Weighted:
        """Return the loss of each example, weighted by its own weight."""
        values = kto(
            x.policy_logps,
            x.reference_logps,
            x.desirable,
            x.statistics["kl"],
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        return self.unpaired(values, x)


@dataclass(frozen=True)
class APOZeroUnpaired(PreferenceLoss):
    """KTO with its baseline held at zero, from unpaired data: no mismatched rows (arXiv:2408.06266)."""

    traced: ClassVar[tuple[str, ...]] = (*PreferenceLoss.traced, "beta")

    name: Literal["apo_zero_unpaired"] = "apo_zero_unpaired"
    beta: float = 0.1
    """Inverse temperature of the reward, per nat."""

    def __post_init__(self):
        super().__post_init__()
        check_positive("beta", self.beta)

    def __call__(self, x: LossInputs) -> Weighted:
        """Return the loss of each example, weighted by its own weight."""
        return self.unpaired(apo_zero_unpaired(x.policy_logps, x.reference_logps, x.desirable, beta=self.beta), x)
