"""A transformer from scratch without a config file: SFT makes it the mixture, RDRO moves it to what was liked.

The data: a prompt is one token, and three times in ten its completion repeats it. People like the repetition.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rdro_jax as rj

MODEL = rj.ModelConfig(
    "llama", vocab_size=16, d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=64, remat="none"
)
ALPHA = 0.3


def make_rows() -> rj.Batch:
    """Ten rows of each prompt: a prompt token and a completion token, liked where they are the same."""
    prompts = np.arange(160)[:, None] % 16
    liked = np.arange(160) < 160 * ALPHA
    return rj.make_batch(prompts, np.where(liked[:, None], prompts, (prompts + 1) % 16), liked)


def fit(params, loss, batch: rj.Batch, steps: int):
    """The parameters after `steps` of AdamW; the batch's reference is the model as it is now."""
    forward = lambda params, batch: rj.completion_logps(params, MODEL, batch)  # noqa: E731
    batch = batch._replace(reference_logps=forward(params, batch))
    optimizer = optax.adamw(1e-2)
    step = jax.jit(rj.make_train_step(forward, loss, optimizer))
    state = rj.init_state(params, loss, optimizer)
    for _ in range(steps):
        state, _ = step(state, batch)
    return state.params


def main() -> dict[str, float]:
    """Mean probability of the liked completion after each stage: the mixture has 0.3, p+ has 1."""
    batch = make_rows()
    params = rj.init_params(MODEL, jax.random.key(1))
    found = {}
    for name, loss in {"sft": rj.losses.SFT(), "rdro": rj.losses.RDRO(alpha=ALPHA)}.items():
        params = fit(params, loss, batch, steps=60)
        probabilities = jnp.exp(rj.completion_logps(params, MODEL, batch))
        found[name] = float(probabilities[batch.desirable].mean())
        print(f"after {name}: {found[name]:.2f}")
    return found


if __name__ == "__main__":
    main()
