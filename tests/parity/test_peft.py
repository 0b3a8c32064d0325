"""Adapters against PEFT in torch: theirs read by us, ours read by them, and merged."""

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

from rdro_jax.models import adapt, forward, load_adapters, load_model, logits, merge, save_adapters, save_model

pytestmark = pytest.mark.parity

SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "initializer_range": 0.15, "pad_token_id": None,
}  # fmt: skip
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODELS = {
    "llama": (
        transformers.LlamaConfig(**SIZES),
        peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj"]),
    ),
    "qwen2, all": (transformers.Qwen2Config(**SIZES), peft.LoraConfig(r=3, lora_alpha=7, target_modules=ALL)),
    "qwen3, rank-stabilised": (
        transformers.Qwen3Config(**SIZES, head_dim=16),
        peft.LoraConfig(r=5, lora_alpha=6, target_modules=["o_proj", "down_proj"], use_rslora=True),
    ),
}
TOKENS = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 50))


def their_logits(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()


def our_logits(params, config):
    return logits(params, config, jax.jit(forward, static_argnums=1)(params, config, TOKENS))


@pytest.fixture(params=MODELS)
def trained(request, tmp_path):
    """A base folder and an adapter folder written by PEFT, and the logits of both together."""
    torch.manual_seed(0)
    config, lora = MODELS[request.param]
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = their_logits(base)
    model = peft.get_peft_model(base, lora)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(tmp_path / "theirs")
    wanted = their_logits(model)
    assert np.abs(wanted - before).max() > 0.1
    return tmp_path, wanted


def test_their_adapter_gives_the_same_logits_here(trained):
    home, wanted = trained
    params, config = load_model(home / "base")
    adapters, lora = load_adapters(home / "theirs", config)
    np.testing.assert_allclose(our_logits(adapt(params, adapters, lora), config), wanted, atol=1e-4)


def test_our_adapter_gives_the_same_logits_there(trained):
    home, wanted = trained
    _, config = load_model(home / "base")
    adapters, lora = load_adapters(home / "theirs", config)
    save_adapters(adapters, lora, home / "ours", base=home / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(home / "base")
    again = peft.PeftModel.from_pretrained(base, home / "ours")
    np.testing.assert_allclose(their_logits(again), wanted, atol=1e-5)


def test_merged_export_gives_the_same_logits_there(trained):
    home, wanted = trained
    params, config = load_model(home / "base")
    adapters, lora = load_adapters(home / "theirs", config)
    save_model(merge(params, adapters, lora), config, home / "merged", base=home / "base")
    again, report = transformers.AutoModelForCausalLM.from_pretrained(home / "merged", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    np.testing.assert_allclose(their_logits(again), wanted, atol=1e-4)
