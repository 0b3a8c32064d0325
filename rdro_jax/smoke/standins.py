"""What stands in for the model and the rows of a run: random, tiny, of the same family and with the same columns."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rdro_jax.data import Source
from rdro_jax.models import ModelConfig, RopeConfig, init_params, load_model_config, load_preset, save_model

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 8,
    "d_ff": 64,
}
"""Widths that divide over eight devices; a token for every byte, and room for the control tokens."""
EXPERTS = {"n_experts": 4, "n_active": 2, "d_expert": 16}
LLAMA = ModelConfig("llama", **SIZES, rope=RopeConfig("llama3", theta=500000.0, factor=8.0))
BY_NAME = {
    "qwen3": ModelConfig("qwen3", **SIZES, qk_norm=True),
    "qwen": ModelConfig("qwen2", **SIZES, qkv_bias=True, tie_word_embeddings=True),
    "mistral": ModelConfig("mistral", **SIZES),
}
"""The family that a part of a model's name tells; any other is Llama 3."""
BOS, EOS = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    f"{{% for m in messages %}}{BOS}{{{{ m.role }}}}\n{{{{ m.content }}}}{EOS}\n{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{BOS}assistant\n{{% endif %}}"
)
"""ChatML, the form of Qwen's and many others' templates."""


def tiny_like(path: str) -> ModelConfig:
    """A tiny architecture with the options of a model: of a preset or a folder as they say, else by the name's family.

    Raises: ConfigError, WeightError where the preset or the folder's config.json cannot be read.

    >>> tiny_like("hub:Qwen/Qwen2.5-3B-Instruct").model_type, tiny_like("models/sft").rope.kind
    ('qwen2', 'llama3')
    """
    if path.endswith(".yaml"):
        return _shrink(load_preset(path))
    if (Path(path) / "config.json").is_file():
        return _shrink(load_model_config(path))
    return next((model for name, model in BY_NAME.items() if name in path.lower()), LLAMA)


def _shrink(model: ModelConfig) -> ModelConfig:
    """The architecture with everything but its sizes: bias, norms, rope, ties, windows, experts stay."""
    kv_heads = min(model.n_kv_heads, SIZES["n_kv_heads"]) if model.n_kv_heads < model.n_heads else SIZES["n_heads"]
    moe = model.moe and dataclasses.replace(model.moe, **EXPERTS)
    sizes = SIZES | {"n_kv_heads": kv_heads, "moe": moe, "first_sliding_layer": min(model.first_sliding_layer, 1)}
    window = model.sliding_window and min(model.sliding_window, 16)
    return dataclasses.replace(model, **sizes, sliding_window=window, eos_token_ids=())


def write_model(folder: Path, model: ModelConfig, seed: int) -> None:
    """A Hugging Face folder of random weights, with a tokenizer of bytes and a chat template."""
    save_model(init_params(model, jax.random.key(seed)), model, folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={byte: number for number, byte in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=EOS)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def write_rows(file: Path, source: Source, *, prompts: int, paired: bool, first: int = 0) -> Source:
    """Rows of `prompts` prompts under the columns that a source reads; returns the source that reads them.

    Each prompt, numbered from `first`, has a desirable completion and one that is not: as a pair, or as two rows.
    """
    theirs = dict(source.column_map)
    with file.open("w", encoding="utf-8") as out:
        for number in range(first, first + prompts):
            for row in _rows(number, paired, source.label_threshold):
                out.write(json.dumps(_renamed(row, theirs)) + "\n")
    return Source(str(file), column_map=source.column_map, label_threshold=source.label_threshold)


def _rows(number: int, paired: bool, threshold: float | None) -> Iterator[dict[str, Any]]:
    """Rows of one prompt: messages, as in the hub's data sets; labels, or scores on both sides of the threshold."""
    prompt = [{"role": "user", "content": f"Name {number}"}]
    good, bad = ([{"role": "assistant", "content": f"{word} {number % 7}"}] for word in ("yes", "no"))
    if paired:
        yield {"prompt": prompt, "chosen": good, "rejected": bad}
        return
    liked, other = (True, False) if threshold is None else (threshold, threshold - 1)
    yield {"prompt": prompt, "completion": good, "label": liked}
    yield {"prompt": prompt, "completion": bad, "label": other}


def _renamed(row: Mapping[str, Any], theirs: Mapping[str, str]) -> dict[str, Any]:
    """The row under a source's own column names; a dotted one is a field of an object."""
    renamed: dict[str, Any] = {}
    for ours, value in row.items():
        *outer, last = theirs.get(ours, ours).split(".")
        at = renamed
        for name in outer:
            at = at.setdefault(name, {})
        at[last] = value
    return renamed
