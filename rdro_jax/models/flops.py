"""Floating point operations of a train step, counted from the architecture.

Compilers are no help: XLA's cost analysis counts the body of a scan once, whatever the number of layers.
"""

from typing import NamedTuple

from rdro_jax.models.config import ModelConfig
from rdro_jax.models.lora import LoraConfig


class StepFlops(NamedTuple):
    """Floating point operations of one optimizer step, over all devices."""

    model: float
    """What the model asks for, the numerator of model FLOPs utilisation (Chowdhery et al. 2022, arXiv:2204.02311):
    2 per weight and token forward and twice that backward, the half of a row's scores that a causal mask leaves,
    nothing computed twice."""
    executed: float
    """The least a step executes where every token is scored: what `remat` computes again and the head's logits a second
    time, attention where it is not kept."""


def layer_weights(model: ModelConfig, *, met: bool = True) -> int:
    """Weights of one layer's matrices; of a mixture with the experts that one token meets, or with all of them."""
    attention = 2 * model.d_model * model.head_dim * (model.n_heads + model.n_kv_heads)
    if model.moe is None:
        return attention + 3 * model.d_model * model.d_ff
    experts = model.moe.n_active if met else model.moe.n_experts
    return attention + model.d_model * (model.moe.n_experts + 3 * experts * model.moe.d_expert)


def step_flops(model: ModelConfig, tokens: int, seq: int, lora: LoraConfig | None = None) -> StepFlops:
    """Operations of a step over `tokens` tokens in rows of `seq`.

    Gradients of weights that adapters leave frozen are not computed: 4 per such weight and token in place of 6. The
    adapters' own products are left out, a hundredth of the whole.

    >>> shape = dict(d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=16)
    >>> flops = step_flops(ModelConfig("llama", vocab_size=32, **shape), tokens=10, seq=5)
    >>> flops.model  # 10 tokens x (6 x (192 + 384 + 256) weights + 12 x 8 x 5 / 2 of attention)
    52320.0
    """
    layers, head = model.n_layers * layer_weights(model), model.vocab_size * model.d_model
    scores = 2.0 * model.n_layers * model.n_heads * model.head_dim * seq
    per_weight = 6.0 if lora is None else 4.0
    qkv = model.n_layers * model.d_model * model.head_dim * (model.n_heads + 2 * model.n_kv_heads)
    again = {"none": 0, "dots": 0, "named": layers - qkv, "full": layers}[model.remat]
    told = per_weight * (layers + head) + 3 * scores
    executed = per_weight * (layers + head) + 2 * (again + head) + (4 if again == layers else 3) * scores
    return StepFlops(tokens * told, tokens * executed)
