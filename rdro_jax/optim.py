"""OptimizerConfig -> optax: AdamW, its schedule, clipping by global norm."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import optax
from pydantic import Field

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule, with the field names and the meaning they have in TRL."""

    learning_rate: Positive = 5e-7
    """Peak learning rate."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up: to 0 by a half cosine or a line, or constant."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the optimizer steps over which the rate rises linearly from 0."""
    weight_decay: NotNegative = 0.0
    """Decoupled decay of matrices; norms and biases are never decayed."""
    adam_beta1: Decay = 0.9
    """Decay of the first moment per step."""
    adam_beta2: Decay = 0.999
    """Decay of the second moment per step."""
    adam_epsilon: Positive = 1e-8
    """Added to the root of the second moment."""
    max_grad_norm: NotNegative = 1.0
    """Gradients are scaled down to this global norm; 0 switches clipping off."""
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which Adam's first moment is kept. The second is float32 always: with `adam_beta2` 0.999 it moves by
    0.1 % a step, which bfloat16, whose neighbours are 0.4 % to 0.8 % apart, would round away."""
    offload: bool = False
    """Keep the moments in host memory between steps: no room for them on the device, a transfer a step."""
    skip_grad_norm: Positive | None = None
    """A step whose gradient exceeds this global norm (before clipping) is skipped, as one that is not finite; null
    skips none."""


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate as a function of the optimizer step, for a run of `num_steps` steps."""
    warmup = round(config.warmup_ratio * num_steps)
    rest = max(num_steps - warmup, 1)
    after = {
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, rest),
        "constant": optax.constant_schedule(config.learning_rate),
    }[config.lr_scheduler_type]
    # The first update is not a wasted one: the warm-up starts one notch above 0.
    rise = lambda step: config.learning_rate * (step + 1) / (warmup + 1)  # noqa: E731
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """AdamW with clipping and schedule. Its state mirrors the parameters leaf by leaf, in float32 or `mu_dtype`."""
    clip = [optax.clip_by_global_norm(config.max_grad_norm)] if config.max_grad_norm else []
    adamw = optax.adamw(
        make_schedule(config, num_steps),
        b1=config.adam_beta1,
        b2=config.adam_beta2,
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
        mask=decay_mask,
        mu_dtype=config.mu_dtype,
    )
    chain = optax.chain(*clip, adamw)
    # optax gives the second moment the parameters' type.
    return optax.GradientTransformation(lambda params: chain.init(optax.tree.cast(params, "float32")), chain.update)


def decay_mask(params: Any) -> Any:
    """True for matrices, embeddings and adapters, False for norm scales and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("scale", "bias"), params)
