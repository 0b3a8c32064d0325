"""What every loss receives, promises and returns."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from jaxtyping import Array, Bool, Float, Int

from rdro_jax.losses.numerics import Scalar

This = TypeVar("This", bound="LossBase")


class LossInputs(NamedTuple):
    """Examples flattened out of their packed rows; filler has weight 0. A pair is two adjacent examples.

    >>> import jax.numpy as jnp
    >>> from rdro_jax.losses import RDRO
    >>> x = LossInputs(
    ...     policy_logps=jnp.array([-12.0, -9.5, 0.0]),  # the third is an empty slot
    ...     reference_logps=jnp.array([-12.5, -9.0, 0.0]),
    ...     lengths=jnp.array([6, 4, 0]),
    ...     desirable=jnp.array([True, False, False]),
    ...     weight=jnp.array([1.0, 1.0, 0.0]),
    ... )
    >>> values, weights = RDRO(alpha=0.4)(x)
    >>> f"{jnp.sum(values * weights) / jnp.sum(weights):.3f} nats"
    '1.317 nats'
    """

    policy_logps: Float[Array, "examples"]
    """Completion log-probability under the policy, in nats, summed over the completion's tokens."""
    reference_logps: Float[Array, "examples"]
    """The same under the reference, in nats."""
    lengths: Int[Array, "examples"]
    """Scored completion tokens of each example."""
    desirable: Bool[Array, "examples"]
    """The label: preferred or not; of a pair, the chosen one is."""
    weight: Float[Array, "examples"]
    """Weight of each example in the batch loss; 0 for filler."""
    statistics: Any = ()
    """What `LossBase.statistics` gave for the batch these examples belong to; () for most."""
    prompt_alpha: Float[Array, "examples"] | None = None
    """Share of preferred completions of each example's prompt; given to losses that say `needs_prompt_alpha`."""


class Weighted(NamedTuple):
    """One value and one weight per example. The step divides sum(values * weights) by sum(weights) once, globally."""

    values: Float[Array, "examples"]
    """Loss of each example, in the loss' own unit, nats for most."""
    weights: Float[Array, "examples"]
    """What each value counts in the mean; 0 for filler and for the second half of a pair."""


@dataclass(frozen=True)
class LossBase:
    """A loss: a frozen config that is a function of examples, and what the step, loop and loader must know of it.

    Every member of `rdro_jax.losses.Loss` is one. A micro-batch is any part of a batch that keeps pairs whole, so
    values couple examples through `statistics` and, in paired losses, adjacent pairs, and in no other way.
    """

    needs_reference: ClassVar[bool] = True
    """Whether `reference_logps` are read, and hence must be known."""
    paired: ClassVar[bool] = False
    """Whether examples come as adjacent pairs: chosen, rejected."""
    needs_mismatched: ClassVar[bool] = False
    """Whether `statistics` reads prompts with other prompts' completions."""

    traced: ClassVar[tuple[str, ...]] = ()
    """Fields whose numbers enter the compiled step as arguments: no Python branch of the loss may look at them."""

    name: str = ""
    """What selects the loss in a run's config; a member of the union narrows it to a Literal."""

    @property
    def needs_labels(self) -> bool:
        """Whether rows without a label, or all of one class, are of no use."""
        return self.needs_reference or self.paired

    @property
    def layout(self) -> Literal["paired", "unpaired"]:
        """How rows are to become examples."""
        return "paired" if self.paired else "unpaired"

    @property
    def needs_prompt_alpha(self) -> bool:
        """Whether `LossInputs.prompt_alpha` is read."""
        return False

    @property
    def statistics_scope(self) -> Literal["global", "microbatch"]:
        """Examples that `statistics` is taken over: the global batch, or each micro-batch by itself."""
        return "global"

    @property
    def log_bound(self) -> Scalar | None:
        """Largest log-ratio of the population optimum, in nats; None where it has none."""
        return None

    @property
    def floor(self) -> float | None:
        """Least value the population objective can have, in nats; None where it is not known."""
        return None

    def resolve(self: This, desirable_share: float) -> This:
        """Return the loss with what it takes from the training data filled in. Raises: ConfigError."""
        return self

    def scalars(self) -> dict[str, float]:
        """Return the numbers of the `traced` fields: losses that differ in them only share one compiled step."""
        return {name: getattr(self, name) for name in self.traced if getattr(self, name) is not None}

    def with_scalars(self: This, scalars: Mapping[str, Any]) -> This:
        """Return the loss with arrays, or what stands for them in a trace, for these numbers. Nothing is checked."""
        traced = copy.copy(self)
        for name, value in scalars.items():
            object.__setattr__(traced, name, value)
        return traced

    def init_running(self) -> Any:
        """Return the running statistics before the first step: a tree kept in the train state and in checkpoints."""
        return ()

    def statistics(self, x: LossInputs, mismatched: LossInputs | None, running: Any) -> tuple[Any, Any]:
        """Return (statistics, running): what couples examples, over the batch `x` and without gradient.

        Statistics are () or a dict of scalars by the name they are logged under; evaluation drops `running`.
        """
        return (), running

    def __call__(self, x: LossInputs) -> Weighted:
        """Return one value and one weight per example, never reduced; `x.statistics` is what `statistics` gave."""
        raise NotImplementedError
