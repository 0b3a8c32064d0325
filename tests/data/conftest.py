"""Tiny tokenizers in Hugging Face folders (byte-level BPE, a few merges, hand-written templates), rows and examples."""

import json

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rdro_jax.data import ClassReport, DataReport, Examples, load_tokenizer

# SmolLM2's manners: a default system message, a line break after each turn, padding = end of turn.
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen 3's manners: a thinking block, written into the header when thinking is off and into the last answer always.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Llama 3.2's manners: BOS in the template, today's date, words trimmed, nothing after the end of turn.
LLAMA3 = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

CHATML_TOKENS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
LLAMA3_TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|eot_id|>"}
LLAMA3_EXTRA = ["<|start_header_id|>", "<|end_header_id|>"]


def write_tokenizer(folder, template, *, extra=(), puts_bos=False, **special):
    """Byte-level BPE whose merges join two line breaks, so that a completion's first byte can merge with the header."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("h", "e"), ("l", "l")]
    vocab = {token: i for i, token in enumerate([*alphabet, *map("".join, merges)])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    words = pre_tokenizers.Split(
        Regex(r"\s*[\r\n]+|\s+(?!\S)| ?\S+"), "isolated"
    )  # line breaks stay together, as in Qwen
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=list(extra), **special)
    if puts_bos:
        bos = special["bos_token"]
        post = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = post
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chatml_folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("chatml"), CHATML, **CHATML_TOKENS)


@pytest.fixture(scope="session")
def chatml(chatml_folder):
    return load_tokenizer(chatml_folder)


@pytest.fixture(scope="session")
def thinking(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("thinking"), THINKING, **CHATML_TOKENS))


@pytest.fixture(scope="session")
def llama3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama3")
    return load_tokenizer(write_tokenizer(folder, LLAMA3, extra=LLAMA3_EXTRA, puts_bos=True, **LLAMA3_TOKENS))


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """A tokenizer without chat template that puts a BOS before every text by itself."""
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("plain"), None, puts_bos=True, **special))


@pytest.fixture
def write_rows(tmp_path):
    """Writes lines (dicts as JSON, bytes and str as they stand) and returns the file's path."""

    def write(lines, name="rows.jsonl", end=b"\n"):
        parts = [
            json.dumps(x).encode() if isinstance(x, dict) else x.encode() if isinstance(x, str) else x for x in lines
        ]
        file = tmp_path / name
        file.write_bytes(b"".join(part + end for part in parts))
        return str(file)

    return write


@pytest.fixture(scope="session")
def tiny_examples():
    """Makes Examples with the given lengths, tokens counted up from 1 over all of them."""

    def make(lengths, prompts, desirable=None):
        rows = len(lengths)
        labels = np.arange(rows) % 2 == 0 if desirable is None else np.asarray(desirable)
        report = DataReport(
            "-", rows, rows, {}, ClassReport(), ClassReport(), float(labels.mean()), sum(lengths), 0, ()
        )
        return Examples(
            tokens=np.arange(1, sum(lengths) + 1, dtype=np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            prompt_lengths=np.array(prompts, np.int32),
            desirable=labels,
            weight=np.linspace(0.5, 1.5, rows, dtype=np.float32),
            hashes=np.zeros((rows, 2), np.uint64),
            truncated=np.zeros(rows, bool),
            report=report,
        )

    return make
