"""Relative density ratio optimisation (Takahashi et al. 2026, arXiv:2604.04410)."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rdro_jax.losses.base import LossInputs, Weighted
from rdro_jax.losses.diagnostics import loss_floor
from rdro_jax.losses.numerics import Scalar, lin_exp, log
from rdro_jax.losses.preference import RatioLoss, check, sampling_weights

Generator = Literal["logistic", "kl", "least_squares", "power"]
Estimator = Literal["per_example", "class_mean", "batch_mean"]
PromptAlphaForm = Literal["offset", "weight"]


def rdro(
    policy_logps: Float[Array, "examples"],
    reference_logps: Float[Array, "examples"],
    desirable: Bool[Array, "examples"],
    *,
    alpha: Scalar,
    generator: Generator = "logistic",
    exponent: float | None = None,
    estimator: Estimator = "per_example",
    desirable_share: Scalar | None = None,
    sampling_alpha: Scalar | None = None,
    prompt_alpha: Float[Array, "examples"] | None = None,
    prompt_alpha_form: PromptAlphaForm = "offset",
    label_noise: float = 0.0,
) -> Float[Array, "examples"]:
    """RDRO loss of every example, in nats; the batch loss is the mean.

    With s = policy_logps - reference_logps and r = exp(s), minimises the Bregman divergence from the relative density
    ratio r* = p+ / (alpha p+ + (1 - alpha) p-) to r, under the mixture the reference models:

        J = E+[A(s)] + alpha E+[H(s)] + (1 - alpha) E-[H(s)],   logistic: A = softplus(-s), H = softplus(s)

    `alpha` is the share of preferred examples, in (0, 1). `generator`: "logistic" is the paper's; "power" lies between
    "kl" (exponent 0) and "least_squares" (exponent 1), and needs `exponent`.

    `estimator`: "per_example" is H(s) + 1[desirable] A(s) / alpha, unbiased for any batch whose examples are drawn at
    the rate `alpha`, or at `sampling_alpha`, for which it then corrects. "class_mean" divides each class by its share
    of the global batch, `desirable_share`, by default that of these arrays (biased when a class is missing).
    "batch_mean" averages alpha-weighted class terms over the batch, counts the class prior twice and is *inconsistent*
    unless alpha = 1/2: offered for comparison with implementations that do so.

    `prompt_alpha` gives alpha per example where it varies with the prompt. It enters as the offset
    s + log(prompt_alpha / alpha), or as the weight alpha / prompt_alpha of A; both have the optimum p+ / reference.

    `label_noise` is the probability that a label is the wrong one. Then `alpha` is the share *as labelled*, and both
    are corrected without bias: each label by (1[desirable] - noise) / (1 - 2 noise), alpha likewise.

    Raises:
        ValueError: a generator or an estimator there is not, "power" without `exponent`, or corrections that exclude
            each other.

    Source: Takahashi et al. 2026, arXiv:2604.04410 (logistic generator, class terms); label noise: Natarajan et al.
    2013. Differs from the paper in the default estimator, whose expectation is the paper's objective, and in offering
    other Bregman generators.

    >>> import jax.numpy as jnp
    >>> policy, reference = jnp.array([-10.2, -14.1]), jnp.array([-10.9, -13.6])  # nats, one for each completion
    >>> [f"{value:.3f}" for value in rdro(policy, reference, jnp.array([True, False]), alpha=0.4)]
    ['2.111', '0.474']
    """
    if label_noise and estimator != "per_example":
        raise ValueError(f"label_noise: got {label_noise} with estimator {estimator!r}, wanted 'per_example'")
    if sampling_alpha is not None and (label_noise or prompt_alpha is not None):
        raise ValueError("sampling_alpha: wanted None beside label_noise or prompt_alpha, which speak of rows as drawn")
    log_ratio = policy_logps - reference_logps
    alpha = (alpha - label_noise) / (1 - 2 * label_noise)
    attract, spread = _prompt_terms(log_ratio, alpha, generator, exponent, prompt_alpha, prompt_alpha_form)
    if estimator == "per_example":
        label = (desirable - label_noise) / (1 - 2 * label_noise)
        return (spread + label * attract / alpha) * sampling_weights(desirable, alpha, sampling_alpha)
    class_terms = jnp.where(desirable, attract + alpha * spread, (1 - alpha) * spread)
    if estimator == "batch_mean":
        return class_terms
    if estimator == "class_mean":
        share = jnp.mean(desirable) if desirable_share is None else desirable_share
        own = jnp.where(desirable, share, 1 - share)
        return class_terms / jnp.where(own > 0, own, 1.0)  # only filler belongs to a class that is missing
    raise ValueError(f"estimator: got {estimator!r}, wanted per_example, class_mean or batch_mean")


def _prompt_terms(log_ratio, alpha, generator, exponent, prompt_alpha, form):
    """A(s) and H(s), with the prompts' own alpha where there is one."""
    if prompt_alpha is None:
        return _bregman_terms(log_ratio, alpha, generator, exponent)
    if form == "offset":
        return _bregman_terms(log_ratio + jnp.log(prompt_alpha / alpha), alpha, generator, exponent)
    attract, spread = _bregman_terms(log_ratio, prompt_alpha, generator, exponent)
    return attract * alpha / prompt_alpha, spread


def _bregman_terms(log_ratio, alpha, generator, exponent):
    """A(s) and H(s) of a generator: the term that attracts preferred examples and the one that bounds the ratio.

    Exponentials are linear above log(1/alpha) + 1/2, where float32 would overflow in the end. The minimiser is
    unchanged, for r* <= 1/alpha.
    """
    knee = 0.5 - jnp.log(alpha)
    match generator:
        case "logistic":
            return jax.nn.softplus(-log_ratio), jax.nn.softplus(log_ratio)
        case "kl":
            return -log_ratio, lin_exp(log_ratio, knee)
        case "least_squares":
            return -lin_exp(log_ratio, knee), lin_exp(2 * log_ratio, 2 * knee) / 2
        case "power" if exponent is not None:
            b = exponent
            spread = lin_exp((1 + b) * log_ratio, (1 + b) * knee) / (1 + b)
            return (1 - lin_exp(b * log_ratio, b * knee)) / b, spread
        case "power":
            raise ValueError("exponent: got None, wanted a number above 0 for generator 'power'")
        case _:
            raise ValueError(f"generator: got {generator!r}, wanted logistic, kl, least_squares or power")


@dataclass(frozen=True)
class RDRO(RatioLoss):
    """Relative density ratio optimisation from unpaired data (arXiv:2604.04410)."""

    name: Literal["rdro"] = "rdro"
    generator: Generator = "logistic"
    """Bregman generator; logistic is the paper's."""
    exponent: float | None = None
    """Exponent of the power generator, above 0 and at most 2: near 0 it is kl, at 1 least_squares."""
    estimator: Estimator = "per_example"
    """How a batch estimates the objective; per_example alone is unbiased, batch_mean is inconsistent."""
    prompt_alpha: PromptAlphaForm | None = None
    """How each prompt's own alpha enters; null: all prompts share `alpha`, or offset where `alpha` is prompt."""
    label_noise: float = 0.0
    """Probability that a label is the wrong one; below both alpha and 1 - alpha, which are then as labelled."""

    def __post_init__(self):
        super().__post_init__()
        if self.generator == "power":
            got = self.exponent
            check("exponent", got, got is not None and 0 < got <= 2, "a number above 0, at most 2, for generator power")
        else:
            check("exponent", self.exponent, self.exponent is None, f"null: generator {self.generator} has none")
        if self.label_noise:
            self._check_noise()
        if self.needs_prompt_alpha:
            self._check_rows_as_drawn("prompt_alpha", self.prompt_alpha)

    def resolve(self, desirable_share: float) -> "RDRO":
        """Return the loss with the training share of preferred examples filled in, `prompt` spelt out."""
        if self.alpha == "prompt":
            form = self.prompt_alpha or "offset"
            return dataclasses.replace(self, alpha="data", prompt_alpha=form).resolve(desirable_share)
        return super().resolve(desirable_share)

    def _check_noise(self):
        rate = 0.5 if isinstance(self.alpha, str) else min(self.alpha, 1 - self.alpha)
        wanted = f"a number from 0 to below {rate:.4g}, the smaller class as labelled"
        check("label_noise", self.label_noise, 0 <= self.label_noise < rate, wanted)
        check("estimator", self.estimator, self.estimator == "per_example", "per_example beside loss.label_noise")
        check("prompt_alpha", self.prompt_alpha, not self.needs_prompt_alpha, "null beside loss.label_noise")
        self._check_rows_as_drawn("label_noise", self.label_noise)

    def _check_rows_as_drawn(self, key, got):
        as_drawn = self.alpha != "estimate" and self.sampling_alpha in (None, self.alpha)
        share = "" if self.sampling_alpha is None else f", which is {self.sampling_alpha}"
        check(key, got, as_drawn, f"loss.alpha: data beside it{share}; got {self.alpha}")

    @property
    def needs_prompt_alpha(self) -> bool:
        """Whether each example comes with its prompt's alpha."""
        return self.prompt_alpha is not None or self.alpha == "prompt"

    @property
    def log_bound(self) -> Scalar | None:
        """log(1 / alpha) of the clean alpha, in nats; None while alpha is to be taken from the data."""
        if isinstance(self.alpha, str):
            return None
        return -log((self.alpha - self.label_noise) / (1 - 2 * self.label_noise))

    @property
    def floor(self) -> float | None:
        """What the logistic objective comes down to where p+ and p- do not overlap, in nats; None for other forms."""
        plain = self.generator == "logistic" and self.estimator != "batch_mean" and not self.label_noise
        if not plain or self.log_bound is None or self.needs_prompt_alpha or self.sft_weight:
            return None
        return loss_floor(math.exp(-self.log_bound))

    def statistics(self, x: LossInputs, mismatched: LossInputs | None, running: Any) -> tuple[Any, Any]:
        """Return the share of preferred examples by weight, for the estimator that divides by it."""
        if self.estimator != "class_mean":
            return (), running
        return {"desirable_share": jnp.sum(jnp.where(x.desirable, x.weight, 0.0)) / jnp.sum(x.weight)}, running

    def __call__(self, x: LossInputs) -> Weighted:
        """Return the estimator's values, weighted by the examples' own weights."""
        alpha = self.known_alpha()
        own_alpha = None
        if self.prompt_alpha is not None:
            assert x.prompt_alpha is not None, "the loader gives prompt_alpha to a loss that says needs_prompt_alpha"
            own_alpha = jnp.where(x.weight > 0, x.prompt_alpha, alpha)  # filler has none; log 0 would reach the sum
        values = rdro(
            x.policy_logps,
            x.reference_logps,
            x.desirable,
            alpha=alpha,
            generator=self.generator,
            exponent=self.exponent,
            estimator=self.estimator,
            desirable_share=x.statistics["desirable_share"] if self.estimator == "class_mean" else None,
            sampling_alpha=None if self.label_noise or self.needs_prompt_alpha else self.sampling_alpha,
            prompt_alpha=own_alpha,
            prompt_alpha_form=self.prompt_alpha or "offset",
            label_noise=self.label_noise,
        )
        return self.unpaired(values, x)
