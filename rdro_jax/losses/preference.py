"""What the configs of several losses share: checks, the SFT term, pairs, and the alpha of the ratio losses."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rdro_jax.errors import ConfigError
from rdro_jax.losses.base import LossBase, LossInputs, Weighted
from rdro_jax.losses.numerics import Scalar, is_zero, log
from rdro_jax.losses.sft import sft

Ratio = TypeVar("Ratio", bound="RatioLoss")


def check(key: str, got: object, holds: bool, wanted: str) -> None:
    """Raises: ConfigError in one line naming the key, what was got and what is wanted, unless `holds`."""
    if not holds:
        raise ConfigError(f"loss.{key}: got {got}; wanted {wanted}")


def check_positive(key: str, got: float) -> None:
    """Raises: ConfigError unless `got` is a finite number above 0."""
    check(key, got, 0 < got < math.inf, "a finite number above 0")


def check_not_negative(key: str, got: float) -> None:
    """Raises: ConfigError unless `got` is a finite number from 0 up."""
    check(key, got, 0 <= got < math.inf, "a finite number, 0 or above")


@dataclass(frozen=True)
class PreferenceLoss(LossBase):
    """A loss on preferences, to which a likelihood term on the preferred completions can be added."""

    traced: ClassVar[tuple[str, ...]] = ("sft_weight",)

    sft_weight: float = 0.0
    """Weight of the negative log-likelihood, in nats per token, added to each preferred example's value."""

    def __post_init__(self):
        check_not_negative("sft_weight", self.sft_weight)

    def scalars(self) -> dict[str, float]:
        """Return the numbers of the `traced` fields; a weight of 0 is none, for its term is left out of the program."""
        return {name: value for name, value in super().scalars().items() if name != "sft_weight" or value}

    def unpaired(self, values: Float[Array, "examples"], x: LossInputs) -> Weighted:
        """Return an unpaired loss' values with the SFT term, and the examples' own weights."""
        if not is_zero(self.sft_weight):
            values = values + jnp.where(x.desirable, self.sft_weight * sft(x.policy_logps, x.lengths), 0.0)
        return Weighted(values, x.weight)


def split_pairs(x: LossInputs) -> tuple[LossInputs, LossInputs]:
    """The first and the second members of adjacent pairs: chosen, rejected."""
    assert x.policy_logps.size % 2 == 0, "a paired loss needs an even number of slots in each row"

    def member(side: int) -> LossInputs:
        take = lambda values: values.reshape(-1, 2)[:, side]  # noqa: E731
        policy, reference, lengths, desirable, weight = map(take, x[:5])
        return LossInputs(policy, reference, lengths, desirable, weight, x.statistics)

    return member(0), member(1)


@dataclass(frozen=True)
class PairedLoss(PreferenceLoss):
    """A loss on pairs of completions, of which one was preferred."""

    paired: ClassVar[bool] = True
    traced: ClassVar[tuple[str, ...]] = (*PreferenceLoss.traced, "beta")

    beta: float = 0.1
    """Inverse temperature of the contrast, per nat."""

    def __post_init__(self):
        super().__post_init__()
        check_positive("beta", self.beta)

    def of_pairs(self, chosen: LossInputs, rejected: LossInputs) -> Float[Array, "pairs"]:
        """Return the loss of each pair, without the SFT term."""
        raise NotImplementedError

    def __call__(self, x: LossInputs) -> Weighted:
        """Return each pair's loss with the SFT term: both members hold the value, the chosen the pair's weight.

        So the sum of weights counts pairs and the batch loss is the mean over them. A pair that lacks a member has
        weight 0.
        """
        chosen, rejected = split_pairs(x)
        values = self.of_pairs(chosen, rejected)
        if not is_zero(self.sft_weight):
            values = values + self.sft_weight * sft(chosen.policy_logps, chosen.lengths)
        weights = jnp.minimum(chosen.weight, rejected.weight)
        return Weighted(jnp.repeat(values, 2), jnp.stack([weights, jnp.zeros_like(weights)], axis=1).reshape(-1))


@dataclass(frozen=True)
class RatioLoss(PreferenceLoss):
    """A loss whose optimum is the relative density ratio, at most 1 / alpha."""

    traced: ClassVar[tuple[str, ...]] = (*PreferenceLoss.traced, "alpha", "sampling_alpha")

    alpha: float | Literal["data", "prompt", "estimate"] = "data"
    """Share of preferred examples among samples of the reference, in (0, 1). "data" takes the training share, "prompt"
    each prompt's own (RDRO only), "estimate" what held-out rows say before the first step."""
    sampling_alpha: float | None = None
    """Share of preferred examples among the rows drawn, in (0, 1); null is the training share in a run."""

    def __post_init__(self):
        super().__post_init__()
        wanted = "a number between 0 and 1, both excluded"
        if not isinstance(self.alpha, str):
            check("alpha", self.alpha, 0 < self.alpha < 1, f"{wanted}, or 'data' (at 1 nothing is learnt)")
        if self.sampling_alpha is not None:
            check("sampling_alpha", self.sampling_alpha, 0 < self.sampling_alpha < 1, f"{wanted}, or null")

    @property
    def log_bound(self) -> Scalar | None:
        """log(1 / alpha), in nats; None while alpha is to be taken from the data."""
        return None if isinstance(self.alpha, str) else -log(self.alpha)

    def resolve(self: Ratio, desirable_share: float) -> Ratio:
        """Return the loss with what is left to the data replaced by the training share of preferred examples."""
        return dataclasses.replace(
            self,
            alpha=desirable_share if self.alpha == "data" else self.alpha,
            sampling_alpha=desirable_share if self.sampling_alpha is None else self.sampling_alpha,
        )

    def known_alpha(self) -> Scalar:
        """Return alpha, which the run has resolved from the data by now."""
        assert not isinstance(self.alpha, str), "alpha is resolved from the data before the step is built"
        return self.alpha


def sampling_weights(
    desirable: Bool[Array, "examples"], alpha: Scalar, sampling_alpha: Scalar | None
) -> Float[Array, "examples"] | float:
    """Importance weights of examples drawn at the rate `sampling_alpha` where the objective has the rate `alpha`.

    1 where the two rates are one, or the second is None. Their expectation is 1: they belong into the values.
    """
    if sampling_alpha is None:
        return 1.0
    return jnp.where(desirable, alpha / sampling_alpha, (1 - alpha) / (1 - sampling_alpha))
