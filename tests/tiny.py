"""A model, its folder and batches small enough for every test: shapes divide over eight devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rdro_jax.batch import Batch
from rdro_jax.models import ModelConfig, init_params, save_model

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


WORDS = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>", *"abcdefghijklmnopqrstuvwxyz", "good", "bad"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% if m.role == 'assistant' %} <eos>{% else %} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)


def make_rows(count, seed):
    """Rows whose label is told by one word of the completion; 40 % are desirable."""
    rng = np.random.default_rng(seed)
    letters = lambda n: " ".join(rng.choice(WORDS[5:31], n))  # noqa: E731
    labels = rng.random(count) < 0.4
    return [
        {
            "prompt": letters(rng.integers(1, 4)),
            "completion": f"{letters(rng.integers(1, 8))} {'good' if label else 'bad'}",
            "label": bool(label),
        }
        for label in labels
    ]


def write_folder(folder):
    """A Hugging Face folder of a random tiny model, and train.jsonl and eval.jsonl beside it."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    save_model(init_params(CONFIG, jax.random.key(0)), CONFIG, folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, count in (("train", 60), ("eval", 30)):
        rows = make_rows(count, seed=count)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
