"""A policy that is none of ours in `make_train_step`: all it asks of a model is log-probabilities of completions.

Here a table of bigrams; anything jax can differentiate will do, Flax, Equinox or Haiku models among them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rdro_jax as rj

VOCABULARY = 8


def bigram_logps(table: jax.Array, batch: rj.Batch) -> jax.Array:
    """Summed log-probability of each row's one completion, [rows, 1], float32, in nats."""
    logps = jax.nn.log_softmax(table)[batch.tokens[:, :-1], batch.tokens[:, 1:]]
    return jnp.sum(logps * batch.loss_mask[:, :-1], axis=1, keepdims=True)


def main() -> float:
    """Held-in margin: mean log-ratio of liked completions less that of the others, in nats, after 50 steps."""
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=(64, 6))
    falling = (tokens[:, 1:] < tokens[:, :-1]).sum(axis=1) > 2  # sequences that fall are liked
    batch = rj.make_batch(tokens[:, :1], tokens[:, 1:], falling)
    table = jnp.zeros((VOCABULARY, VOCABULARY))
    batch = batch._replace(reference_logps=bigram_logps(table, batch))
    loss, optimizer = rj.losses.RDRO(alpha=float(batch.desirable.mean())), optax.adam(0.05)
    step = jax.jit(rj.make_train_step(bigram_logps, loss, optimizer, num_microbatches=4))
    state = rj.init_state(table, loss, optimizer)
    for _ in range(50):
        state, metrics = step(state, batch)
    ratio = bigram_logps(state.params, batch) - batch.reference_logps
    margin = float(ratio[batch.desirable].mean() - ratio[~batch.desirable].mean())
    print(f"loss {metrics['loss'] / metrics['weight']:.3f}, margin {margin:.2f} nats")
    return margin


if __name__ == "__main__":
    main()
