"""A real pretrained model against transformers: SmolLM2-135M-Instruct as the quickstart makes it."""

import jax
import numpy as np
import pytest
import torch
import transformers

from rdro_jax.batch import Batch
from rdro_jax.generate import Sampling, generate, sample
from rdro_jax.models import forward, load_model, logits, save_model
from rdro_jax.train import completion_logps

pytestmark = pytest.mark.parity

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at 100",
    "<|im_start|>user\nWrite one sentence of a movie review.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nTranslate 'good morning' into Spanish.<|im_end|>\n<|im_start|>assistant\n",
    "The mitochondria is the powerhouse of",
    "In 1969, two astronauts",
    "SELECT name FROM users WHERE",
    "import numpy as np\n\n",
    "Dear Sir or Madam,",
    "1, 2, 3, 4, 5,",
    "To make an omelette, first",
    "The opposite of hot is",
    "Gravity is the force that",
    "She opened the door and saw",
    "A triangle has three",
    "The best thing about winter is",
]
NEW_TOKENS = 64


@pytest.fixture(scope="module")
def theirs(smollm2):
    return transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ours(smollm2):
    return load_model(smollm2)


@pytest.fixture(scope="module")
def prompts(smollm2):
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(smollm2 / "tokenizer.json"))
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


def test_logits(ours, theirs, smollm2, prompts):
    """Within 1e-4 of transformers in float64 at every position but a sequence's first, or twice what torch's own
    float32 is off there: measured 9e-5 beside torch's 9e-5 on one processor, 1.6e-4 beside 8.9e-5 on another.

    At its first token this model carries one number of about 26,000 through the residual stream and cancels it in the
    last layers. Measured there: we 1.6e-4, torch's float32 9.3e-5; over 64 other first tokens 2.1e-4 and 1.5e-4. It is
    the float32 sums of the products by down_proj: all else in float64, those alone are up to 1.0e-4 off in XLA and
    1.5e-4 in torch, and rounding the stream itself to float32 4e-5.
    """
    params, config = ours
    exact = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float64).eval()
    longest = max(map(len, prompts))
    padded = np.array([tokens + [0] * (longest - len(tokens)) for tokens in prompts])
    got = jax.jit(lambda params, tokens: logits(params, config, forward(params, config, tokens)))(params, padded)
    with torch.no_grad():
        wanted, single = (
            [model(torch.tensor([tokens])).logits[0].numpy() for tokens in prompts] for model in (exact, theirs)
        )
    torchs = max(np.abs(rounded - true)[1:].max() for rounded, true in zip(single, wanted, strict=True))
    for tokens, scores, true in zip(prompts, np.asarray(got), wanted, strict=True):
        np.testing.assert_allclose(scores[1 : len(tokens)], true[1:], atol=max(1e-4, 2 * torchs), rtol=0)
        np.testing.assert_allclose(scores[0], true[0], atol=3e-4, rtol=0)


@pytest.fixture(scope="module")
def greedy(theirs, prompts):
    """transformers' greedy tokens of all prompts, in one batch padded on the left; no stop token: all are compared."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    return theirs.generate(tokens, attention_mask=mask, **options)[:, longest:].tolist()


def test_greedy_generation(ours, greedy, prompts):
    assert generate(*ours, prompts, max_new_tokens=NEW_TOKENS) == greedy


def their_logps(theirs, prompt, completion):
    """Log-probs in nats of the completion's tokens; in float64 from float32 logits."""
    with torch.no_grad():
        scores = theirs(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].double()
    return scores.log_softmax(-1)[range(len(completion)), completion].numpy()


def test_nll_of_packed_rows(ours, theirs, greedy, prompts):
    """The mean NLL per token, in nats, of each completion: 1e-5 of itself, or 1e-6 nats where it is below 0.1."""
    others = greedy[::-1]
    texts = [(prompt, [*mine[:32], *other[:16]]) for prompt, mine, other in zip(prompts, greedy, others, strict=True)]
    wanted = np.array([-their_logps(theirs, *text).mean() for text in texts])
    params, config = ours
    seq, rows = 256, [texts[at : at + 2] for at in range(0, len(texts), 2)]
    batch = Batch(*(np.zeros((len(rows), seq), kind) for kind in (np.int32, np.int32, np.int32, bool)), *[None] * 3)
    for row, pair in enumerate(rows):
        end = 0
        for slot, (prompt, completion) in enumerate(pair, start=1):
            start, end = end, end + len(prompt) + len(completion)
            batch.tokens[row, start:end] = [*prompt, *completion]
            batch.positions[row, start:end] = range(end - start)
            batch.segment_ids[row, start:end] = slot
            batch.loss_mask[row, start + len(prompt) - 1 : end - 1] = True
    filled = np.ones((len(rows), 2), np.float32)
    batch = batch._replace(desirable=filled > 0, weight=filled, reference_logps=filled)
    logps = jax.jit(lambda params, batch: completion_logps(params, config, batch))(params, batch)
    got = -np.asarray(logps).reshape(-1) / [len(completion) for _, completion in texts]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_log_probs_of_samples(ours, theirs, prompts):
    """Those said beside sampled tokens are what transformers gives the same tokens: 1e-4 nats."""
    done = sample(*ours, prompts, Sampling(16, temperature=1.0), key=jax.random.key(0))
    for prompt, (tokens, logps) in zip(prompts, done, strict=True):
        np.testing.assert_allclose(logps, their_logps(theirs, prompt, tokens), atol=1e-4, rtol=0)


def test_load_and_save_bit_for_bit(ours, smollm2, tmp_path):
    save_model(*ours, tmp_path / "again", base=smollm2)
    names = {file.name for file in (tmp_path / "again").iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= names
    before, after = (
        transformers.AutoModelForCausalLM.from_pretrained(where).state_dict() for where in (smollm2, tmp_path / "again")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
