"""A model and batches small enough for every test: shapes divide over eight devices."""

import jax
import jax.numpy as jnp
import numpy as np

from rdro_jax.batch import Batch
from rdro_jax.models import ModelConfig

CONFIG = ModelConfig(
    "qwen2",
    vocab_size=64,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=64,
    qkv_bias=True,
    tie_word_embeddings=True,
    remat="none",
)


def make_batch(lengths, *, rows, seq=32, slots=4, seed=0, labels=None) -> Batch:
    """Examples of `(prompt, completion)` tokens, laid one after the other into rows as they fit."""
    rng = np.random.default_rng(seed)
    batch = Batch(
        tokens=np.zeros((rows, seq), np.int32),
        positions=np.zeros((rows, seq), np.int32),
        segment_ids=np.zeros((rows, seq), np.int32),
        loss_mask=np.zeros((rows, seq), bool),
        desirable=np.zeros((rows, slots), bool),
        weight=np.zeros((rows, slots), np.float32),
        reference_logps=np.zeros((rows, slots), np.float32),
    )
    row = slot = at = 0
    for number, (prompt, completion) in enumerate(lengths):
        if at + prompt + completion > seq or slot == slots:
            row, slot, at = row + 1, 0, 0
        stop = at + prompt + completion
        batch.tokens[row, at:stop] = rng.integers(1, CONFIG.vocab_size, stop - at)
        batch.positions[row, at:stop] = np.arange(stop - at)
        batch.segment_ids[row, at:stop] = slot + 1
        batch.loss_mask[row, at + prompt - 1 : stop - 1] = True
        batch.desirable[row, slot] = rng.random() < 0.4 if labels is None else labels[number]
        batch.weight[row, slot] = 1
        batch.reference_logps[row, slot] = -4.2 * completion
        slot, at = slot + 1, stop
    return jax.tree.map(jnp.asarray, batch)
