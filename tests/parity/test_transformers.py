"""Our decoders against transformers in torch, on tiny random folders that transformers wrote itself."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from rdro_jax.batch import Batch
from rdro_jax.generate import generate
from rdro_jax.losses import completion_logps_from_hidden
from rdro_jax.models import forward, load_model, logits, output_embedding, save_model
from rdro_jax.models.families import weight_table
from rdro_jax.models.weights import flatten

pytestmark = pytest.mark.parity

SIZES = {
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.15,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,  # torch gives a padding row zeros for an embedding and for its gradient
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
YARN_ROPES = {
    "as Qwen 2.5 writes it": YARN_ROPE,
    "whole": YARN_ROPE | {"truncate": False, "beta_fast": 24.0, "beta_slow": 2.0, "attention_factor": 1.25},
    "two scales": YARN_ROPE | {"mscale": 1.0, "mscale_all_dim": 0.7},
}
ONE_HEAD = {"num_attention_heads": 3, "num_key_value_heads": 1}
EXPERTS = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "head_dim": 12}
MODELS = {
    "llama3, rope scaling": transformers.LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE),
    "llama, odd heads, tied": transformers.LlamaConfig(**SIZES | ONE_HEAD, tie_word_embeddings=True),
    "llama, linear rope, wide heads": transformers.LlamaConfig(**SIZES, rope_parameters=LINEAR_ROPE, head_dim=20),
    "llama, no grouping": transformers.LlamaConfig(**SIZES | {"num_key_value_heads": 6}),
    "mistral, no window": transformers.MistralConfig(**SIZES, sliding_window=None),
    "mistral, window": transformers.MistralConfig(**SIZES, sliding_window=23),
    "qwen2.5": transformers.Qwen2Config(**SIZES),
    "qwen2.5, tied": transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2, window from layer 1": transformers.Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=17, max_window_layers=1
    ),
    **{
        f"qwen2.5, yarn, {name}": transformers.Qwen2Config(**SIZES, rope_parameters=r) for name, r in YARN_ROPES.items()
    },
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=12),
    "qwen3, tied": transformers.Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True),
    "qwen3, odd heads, yarn": transformers.Qwen3Config(**SIZES | ONE_HEAD, head_dim=10, rope_parameters=YARN_ROPE),
    "qwen3 moe": transformers.Qwen3MoeConfig(**SIZES, **EXPERTS),
    "qwen3 moe, normalised, tied": transformers.Qwen3MoeConfig(
        **SIZES, **EXPERTS | {"num_experts_per_tok": 2}, norm_topk_prob=True, tie_word_embeddings=True
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def models(request, tmp_path_factory):
    """A folder written by transformers, their model, our parameters and our configuration."""
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(MODELS[request.param]).eval()
    with torch.no_grad():  # transformers starts biases at 0 and scales at 1, which would hide a missing one
        for name, weight in theirs.named_parameters():
            if name.endswith("bias") or "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return folder, theirs, *load_model(folder)


def random_tokens(rows, seq, seed=0):
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], (rows, seq))


def our_logits(params, config, tokens):
    return logits(params, config, jax.jit(forward, static_argnums=1)(params, config, tokens))


def test_logits(models):
    """Against theirs in float64: in float32 theirs are themselves up to 9e-6 away from it."""
    _, theirs, params, config = models
    tokens = random_tokens(2, 160)
    exact = copy.deepcopy(theirs).double()
    exact.config._experts_implementation = "eager"  # its grouped product of experts knows no float64
    with torch.no_grad():
        wanted = exact(torch.tensor(tokens)).logits.numpy()
    assert wanted.std() > 0.3  # logits that hardly differ would agree for any decoder
    np.testing.assert_allclose(our_logits(params, config, tokens), wanted, atol=1e-5, rtol=1e-5)


def test_load_and_save_bit_for_bit(models, tmp_path):
    folder, _, params, config = models
    save_model(params, config, tmp_path / "ours", base=folder)
    before, after = (load_file(where / "model.safetensors") for where in (folder, tmp_path / "ours"))
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.dtype == after[name].dtype
        assert array.tobytes() == after[name].tobytes(), name
    assert (tmp_path / "ours" / "config.json").read_bytes() == (folder / "config.json").read_bytes()


@pytest.mark.parametrize("with_base", [True, False])
def test_transformers_loads_what_we_save(models, tmp_path, with_base):
    folder, theirs, params, config = models
    save_model(params, config, tmp_path / "ours", base=folder if with_base else None)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(again) is type(theirs)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    tokens = torch.tensor(random_tokens(1, 60))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, theirs(tokens).logits)


def test_bfloat16_round_trip(models, tmp_path):
    _, theirs, _, _ = models
    half = type(theirs)(theirs.config).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "theirs")
    params, config = load_model(tmp_path / "theirs", dtype="bfloat16")
    save_model(params, config, tmp_path / "ours", base=tmp_path / "theirs")
    before, after = (load_file(tmp_path / where / "model.safetensors") for where in ("theirs", "ours"))
    assert {name: array.tobytes() for name, array in before.items()} == {n: a.tobytes() for n, a in after.items()}


def by_file_name(tensors):
    """Tensors of a model under the names of its file, where each expert has its own three matrices."""
    named = {}
    for name, tensor in tensors.items():
        at, _, kind = name.partition(".experts.")
        for expert, matrix in enumerate(tensor) if kind else ():
            parts = matrix.chunk(2) if kind == "gate_up_proj" else [matrix]
            names = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
            named |= {f"{at}.experts.{expert}.{n}.weight": p.numpy() for n, p in zip(names, parts, strict=True)}
        named |= {} if kind else {name: tensor.numpy()}
    return named


def test_gradients_of_a_completion_log_prob(models):
    """The gradient in every tensor of the summed log-probability of a completion, back through the weight table."""
    _, theirs, params, config = models
    tokens, prompt = random_tokens(2, 40), 15

    def summed(params):
        hidden = forward(params, config, tokens)
        log_probs = jax.nn.log_softmax(logits(params, config, hidden)[:, :-1])
        return jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[:, prompt - 1 :].sum()

    theirs.zero_grad()
    log_probs = torch.log_softmax(theirs(torch.tensor(tokens)).logits[:, :-1], -1)
    log_probs.gather(-1, torch.tensor(tokens)[:, 1:, None])[:, prompt - 1 :].sum().backward()
    wanted = by_file_name({name: weight.grad for name, weight in theirs.named_parameters()})

    ours = flatten(jax.jit(jax.grad(summed))(params))
    for row in weight_table(config):
        for place in row.places(ours[row.ours].shape):
            name, gradient = row.hf_name(place), np.asarray(ours[row.ours][place])
            scale = np.abs(wanted[name]).max()
            assert scale > 0, name
            np.testing.assert_allclose(row.transform.to_hf(gradient), wanted[name], atol=1e-4 * scale, err_msg=name)


def test_greedy_generation(models):
    _, theirs, params, config = models
    prompts = [random_tokens(1, length, seed=length)[0].tolist() for length in (1, 4, 9, 17, 30)]
    ours = generate(params, config, prompts, max_new_tokens=32)
    for prompt, completion in zip(prompts, ours, strict=True):
        tokens = torch.tensor([prompt])
        options = {"max_new_tokens": 32, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
        assert completion == theirs.generate(tokens, **options)[0, len(prompt) :].tolist()


def test_packed_completion_log_probs(models):
    """Three examples in one row of ours against three separate runs of theirs."""
    _, theirs, params, config = models
    lengths, prompt, seq = [12, 30, 7], 4, 64
    examples = [random_tokens(1, length, seed=length)[0] for length in lengths]
    batch = Batch(
        tokens=np.zeros((1, seq), np.int32),
        positions=np.zeros((1, seq), np.int32),
        segment_ids=np.zeros((1, seq), np.int32),
        loss_mask=np.zeros((1, seq), bool),
        desirable=np.ones((1, 3), bool),
        weight=np.ones((1, 3), np.float32),
        reference_logps=np.zeros((1, 3), np.float32),
    )
    at = 0
    for slot, example in enumerate(examples):
        end = at + len(example)
        batch.tokens[0, at:end], batch.positions[0, at:end] = example, np.arange(len(example))
        batch.segment_ids[0, at:end], batch.loss_mask[0, at + prompt - 1 : end - 1] = slot + 1, True
        at = end
    hidden = forward(params, config, batch.tokens, batch.positions, batch.segment_ids)
    packed = completion_logps_from_hidden(hidden, output_embedding(params, config), batch)
    for slot, example in enumerate(examples):
        with torch.no_grad():
            log_probs = torch.log_softmax(theirs(torch.tensor(example)[None]).logits[0, :-1].double(), -1)
        wanted = log_probs.gather(-1, torch.tensor(example)[1:, None])[prompt - 1 :].sum().item()
        assert packed[0, slot] == pytest.approx(wanted, rel=1e-5)
