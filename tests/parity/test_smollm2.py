"""A real pretrained model against transformers: SmolLM2-135M-Instruct as the quickstart makes it."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers

from rdro_jax.generate import generate
from rdro_jax.models import forward, load_model, logits, save_model

pytestmark = pytest.mark.parity

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at 100",
    "<|im_start|>user\nWrite one sentence of a movie review.<|im_end|>\n<|im_start|>assistant\n",
]


@pytest.fixture(scope="module")
def folder():
    """The folder RDRO_SMOLLM2 names, else the quickstart's, downloaded on first use."""
    named = os.environ.get("RDRO_SMOLLM2")
    if named:
        return Path(named)
    from rdro_jax.quickstart import fetch_model  # here, so that a named folder needs no quickstart

    return fetch_model()


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ours(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def prompts(folder):
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


def test_logits(ours, theirs, prompts):
    """1e-4 at every position but a sequence's first, whose bound is wider for a reason measured here.

    At its first token this model carries one number of about 26,000 through the residual stream and cancels it in the
    last layers. A float32 step there is 2e-3, so that over 64 first tokens torch itself is up to 1.5e-4 away from a
    float64 computation of the same logits, and we up to 2.1e-4.
    """
    params, config = ours
    scores = jax.jit(lambda params, tokens: logits(params, config, forward(params, config, tokens)))
    for tokens in prompts:
        with torch.no_grad():
            wanted = theirs(torch.tensor([tokens])).logits.numpy()
        got = scores(params, np.array([tokens]))
        np.testing.assert_allclose(got[:, 1:], wanted[:, 1:], atol=1e-4, rtol=0)
        np.testing.assert_allclose(got[:, :1], wanted[:, :1], atol=3e-4, rtol=0)


def test_greedy_generation(ours, theirs, prompts):
    completions = generate(*ours, prompts, max_new_tokens=32)
    for prompt, completion in zip(prompts, completions, strict=True):
        tokens = torch.tensor([prompt])
        options = {"max_new_tokens": 32, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
        # No stop token: all 32 tokens are compared.
        wanted = theirs.generate(tokens, **options, eos_token_id=-1, pad_token_id=0)[0, len(prompt) :].tolist()
        assert completion == wanted


def test_load_and_save_bit_for_bit(ours, folder, tmp_path):
    save_model(*ours, tmp_path / "again", base=folder)
    names = {file.name for file in (tmp_path / "again").iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= names
    before, after = (
        transformers.AutoModelForCausalLM.from_pretrained(where).state_dict() for where in (folder, tmp_path / "again")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
