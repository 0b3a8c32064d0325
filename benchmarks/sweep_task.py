"""A task for sweeps that a CPU core trains in seconds: `python -m benchmarks.sweep_task FOLDER`.

A random model of two layers, and pairs of completions: six letters, of which the chosen ones hold more of the first
half of the alphabet. The folder gets the model, train.jsonl, eval.jsonl and run.yaml, the config of a
run.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rdro_jax.models import ModelConfig, init_params, save_model

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>", *LETTERS]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% if m.role == 'assistant' %} <eos>{% else %} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)
N_TRAIN, N_HELDOUT, N_LETTERS = 192, 96, 6
MODEL = ModelConfig(
    "llama", vocab_size=32, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64, remat="none"
)


def write_task(folder: Path, model: ModelConfig = MODEL) -> Path:
    """Write the task into `folder`, with a random model of that shape; returns its config."""
    save_model(init_params(model, jax.random.key(0)), model, folder / "model")
    vocabulary = [*WORDS, *(f"<{number}>" for number in range(len(WORDS), model.vocab_size))]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "model")
    for seed, (name, count) in enumerate((("train", N_TRAIN), ("eval", N_HELDOUT))):
        rows = make_pairs(count, np.random.default_rng(seed))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "num_train_epochs": 4,
        "global_batch_size": 8,
        "model": {"path": str(folder / "model"), "remat": "none"},
        "data": {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl")},
        "loss": {"name": "rdro", "alpha": 0.5},
        "optimizer": {"learning_rate": 1e-3},
        "checkpoint": {"save_steps": 8},
    }
    config["data"] |= {"max_length": 48, "slots": 4, "workers": 1}
    (folder / "run.yaml").write_text(json.dumps(config, indent=1))
    return folder / "run.yaml"


def make_pairs(count: int, random: np.random.Generator) -> list[dict[str, str]]:
    """Pairs of completions to a prompt of two letters: both letters at random, the chosen one leaning to the front."""
    lean = np.where(np.arange(26) < 13, 3.0, 1.0)

    def letters(number: int, shares: np.ndarray) -> str:
        return " ".join(random.choice([*LETTERS], number, p=shares / shares.sum()))

    kinds = {"chosen": lean, "rejected": lean[::-1]}
    return [
        {"prompt": letters(2, np.ones(26)), **{kind: letters(N_LETTERS, shares) for kind, shares in kinds.items()}}
        for _ in range(count)
    ]


if __name__ == "__main__":
    print(write_task(Path(sys.argv[1])))
