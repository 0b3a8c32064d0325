"""A tiny model folder with a tokenizer and rows to train it on: what a user has before a run."""

import json

import jax
import numpy as np
import pytest
from tiny import CONFIG
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rdro_jax.models import init_params, save_model

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


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def config_file(folder, tmp_path):
    """A run of about ten steps on one device, written as YAML."""
    file = tmp_path / "run.yaml"
    file.write_text(f"""
output_dir: {tmp_path / "run"}
num_train_epochs: 3
global_batch_size: 4
num_microbatches: 2
model: {{path: {folder / "model"}}}
reference: {{store: {tmp_path / "store"}}}
data: {{train: {folder / "train.jsonl"}, eval: {folder / "eval.jsonl"}, max_length: 32, slots: 4}}
loss: {{name: rdro}}
optimizer: {{learning_rate: 1.0e-2}}
checkpoint: {{save_steps: 3}}
mesh: {{fsdp: 2, data: -1}}
""")
    return file
