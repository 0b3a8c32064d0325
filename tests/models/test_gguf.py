"""GGUF import. The oracle is the arrays, tokens and numbers that the test itself writes into the file."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from rdro_jax.errors import StorageError, WeightError
from rdro_jax.models.gguf import import_gguf

D_MODEL, D_FF, N_HEADS, N_KV_HEADS, HEAD_DIM = 32, 64, 4, 2, 8
ROPE_THETA = 500000.0
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MERGES = ["1 2", "12 3", "Ġ a", "t h", "th e", "Ġ the"]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*SPECIAL, *BYTES, "12", "123", "Ġa", "th", "the", "Ġthe", "Ġcab", "<tool>"]
TOKEN_TYPES = [3] * len(SPECIAL) + [1] * (len(BYTES) + 7) + [4]
TEXTS = [
    "the 123 a\n\n\tdef f(x):  return x**2",
    "😀👍🏽 naïve café 日本語",
    "<|im_start|>user\nhi<|im_end|>\n",
    "2024-01-01 it's <tool>",
    "",
]


def shapes(arch: str, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """GGUF tensor names of a one-layer model, shapes as numpy has them."""
    q, kv = N_HEADS * HEAD_DIM, N_KV_HEADS * HEAD_DIM
    layer = {
        "attn_norm.weight": (D_MODEL,),
        "attn_q.weight": (q, D_MODEL),
        "attn_k.weight": (kv, D_MODEL),
        "attn_v.weight": (kv, D_MODEL),
        "attn_output.weight": (D_MODEL, q),
        "ffn_norm.weight": (D_MODEL,),
        "ffn_gate.weight": (D_FF, D_MODEL),
        "ffn_up.weight": (D_FF, D_MODEL),
        "ffn_down.weight": (D_MODEL, D_FF),
    }
    if arch == "qwen2":
        layer |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
    if arch == "qwen3":
        layer |= {"attn_q_norm.weight": (HEAD_DIM,), "attn_k_norm.weight": (HEAD_DIM,)}
    top = {"token_embd.weight": (len(TOKENS), D_MODEL), "output_norm.weight": (D_MODEL,)}
    return (
        top
        | ({} if tied else {"output.weight": top["token_embd.weight"]})
        | {f"blk.0.{k}": v for k, v in layer.items()}
    )


def random_tensors(arch: str = "llama", *, tied: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes(arch, tied=tied).items()}


def write_gguf(
    path: Path,
    tensors: dict[str, np.ndarray],
    *,
    arch: str = "llama",
    pre: str = "smollm",
    raw: dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType]] | None = None,
    **extra: object,
) -> Path:
    """A GGUF file; `raw` holds tensors as packed bytes with their kind; `extra` adds uint32 metadata (__ for a dot)."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_FF)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types(TOKEN_TYPES)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for key, value in extra.items():
        writer.add_uint32(key.replace("__", "."), value)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    for name, (packed, kind) in (raw or {}).items():
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def imported(tmp_path: Path, tensors: dict[str, np.ndarray], **options: object) -> tuple[Path, dict, dict]:
    """(folder, tensors, config.json) of a GGUF file written and imported."""
    folder = import_gguf(write_gguf(tmp_path / "m.gguf", tensors, **options), tmp_path / "out")
    return folder, load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(("arch", "tied"), [("qwen2", True), ("qwen2", False), ("qwen3", True)])
def test_tensors_come_back_as_written(tmp_path: Path, arch: str, tied: bool) -> None:
    tensors = random_tensors(arch, tied=tied)
    _, out, config = imported(tmp_path, tensors, arch=arch, pre="qwen2")
    assert len(out) == len(tensors)
    np.testing.assert_array_equal(out["model.embed_tokens.weight"], tensors["token_embd.weight"])
    np.testing.assert_array_equal(out["model.layers.0.self_attn.q_proj.weight"], tensors["blk.0.attn_q.weight"])
    np.testing.assert_array_equal(out["model.layers.0.mlp.down_proj.weight"], tensors["blk.0.ffn_down.weight"])
    if arch == "qwen2":
        np.testing.assert_array_equal(out["model.layers.0.self_attn.k_proj.bias"], tensors["blk.0.attn_k.bias"])
    else:
        np.testing.assert_array_equal(
            out["model.layers.0.self_attn.q_norm.weight"], tensors["blk.0.attn_q_norm.weight"]
        )
    assert ("lm_head.weight" in out) is not tied
    assert config["tie_word_embeddings"] is tied


def test_config_says_what_the_metadata_says(tmp_path: Path) -> None:
    _, _, config = imported(tmp_path, random_tensors())
    wanted = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(TOKENS),
        "hidden_size": D_MODEL,
        "intermediate_size": D_FF,
        "num_hidden_layers": 1,
        "num_attention_heads": N_HEADS,
        "num_key_value_heads": N_KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": None,
        "eos_token_id": [2],
    }
    assert wanted.items() <= config.items()


def test_quantised_blocks_are_expanded(tmp_path: Path) -> None:
    """Blocks of 32 packed by hand: Q8_0 is d * q; Q4_1 is d * q + m, low nibbles first; F16 is itself."""
    rng = np.random.default_rng(1)
    tensors = random_tensors()
    blocks = tensors.pop("blk.0.ffn_up.weight").shape[0]
    scale, shift = rng.uniform(0.1, 1, (2, blocks, 1)).astype(np.float16)
    q8, q4 = rng.integers(-127, 128, (blocks, 32)), rng.integers(0, 16, (blocks, 32))
    nibbles = (q4[:, :16] | q4[:, 16:] << 4).astype(np.uint8)
    half = tensors.pop("blk.0.ffn_down.weight").astype(np.float16)
    del tensors["blk.0.ffn_gate.weight"]
    raw = {
        "blk.0.ffn_up.weight": (
            np.concatenate([scale.view(np.uint8), q8.astype(np.int8).view(np.uint8)], axis=1),
            gguf.GGMLQuantizationType.Q8_0,
        ),
        "blk.0.ffn_gate.weight": (
            np.concatenate([scale.view(np.uint8), shift.view(np.uint8), nibbles], axis=1),
            gguf.GGMLQuantizationType.Q4_1,
        ),
    }
    _, out, _ = imported(tmp_path, tensors | {"blk.0.ffn_down.weight": half}, raw=raw)
    wide_scale, wide_shift = scale.astype(np.float64), shift.astype(np.float64)
    np.testing.assert_allclose(out["model.layers.0.mlp.up_proj.weight"], wide_scale * q8, rtol=1e-6)
    np.testing.assert_allclose(out["model.layers.0.mlp.gate_proj.weight"], wide_scale * q4 + wide_shift, rtol=1e-6)
    np.testing.assert_array_equal(out["model.layers.0.mlp.down_proj.weight"], half.astype(np.float32))
    assert {array.dtype for array in out.values()} == {np.dtype(np.float32)}


def test_llama_scores_are_those_of_the_interleaved_order(tmp_path: Path) -> None:
    """Rotate-half RoPE on imported rows scores as interleaved RoPE on the rows GGUF stores; q and k differ in heads."""
    tensors = random_tensors()
    _, out, _ = imported(tmp_path, tensors)
    x = np.random.default_rng(2).normal(size=(5, D_MODEL))

    def heads(weight: np.ndarray) -> np.ndarray:
        return (x @ weight.T.astype(np.float64)).reshape(5, -1, HEAD_DIM)

    angle = np.arange(5)[:, None] * ROPE_THETA ** (-np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    turn = np.exp(1j * angle)[:, None]

    def interleaved(h: np.ndarray) -> np.ndarray:
        return (h[..., 0::2] + 1j * h[..., 1::2]) * turn

    def rotate_half(h: np.ndarray) -> np.ndarray:
        return (h[..., : HEAD_DIM // 2] + 1j * h[..., HEAD_DIM // 2 :]) * turn

    def scores(q: np.ndarray, k: np.ndarray) -> np.ndarray:
        return np.einsum("qhd,khd->hqk", q, np.repeat(k, N_HEADS // N_KV_HEADS, axis=1).conj()).real

    stored = scores(
        interleaved(heads(tensors["blk.0.attn_q.weight"])), interleaved(heads(tensors["blk.0.attn_k.weight"]))
    )
    layer = "model.layers.0.self_attn."
    ours = scores(rotate_half(heads(out[layer + "q_proj.weight"])), rotate_half(heads(out[layer + "k_proj.weight"])))
    np.testing.assert_allclose(ours, stored, rtol=1e-10)
    np.testing.assert_array_equal(out[layer + "v_proj.weight"], tensors["blk.0.attn_v.weight"])


def test_llama3_rope_scaling_is_recovered(tmp_path: Path) -> None:
    """Factors as Llama 3.2 has them: 32 above wavelength 8192, 1 below 2048, the published blend between."""
    wavelengths = 2 * np.pi * ROPE_THETA ** (np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    assert np.sum((wavelengths > 2048) & (wavelengths < 8192)) == 1, "the blend is exercised"
    blend = [
        1.0 if w < 2048 else 32.0 if w > 8192 else 1 / ((s := (8192 / w - 1) / 3) + (1 - s) / 32) for w in wavelengths
    ]
    _, out, config = imported(tmp_path, random_tensors() | {"rope_freqs.weight": np.array(blend, np.float32)})
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert not any("rope" in name for name in out)


def test_foreign_rope_factors_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors() | {"rope_freqs.weight": np.array([1, 3, 2, 5], np.float32)}
    with pytest.raises(WeightError, match=r"rope_freqs.weight is not Llama 3's"):
        imported(tmp_path, tensors)


@pytest.mark.parametrize("pre", ["smollm", "qwen2", "llama-bpe"])
def test_tokenizer_round_trips_and_is_the_one_transformers_loads(tmp_path: Path, pre: str) -> None:
    folder, _, _ = imported(tmp_path, random_tensors(), pre=pre)
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for text in TEXTS:
        ids = raw.encode(text).ids
        assert auto(text)["input_ids"] == ids
        body = ids[1:] if pre == "llama-bpe" else ids
        assert raw.decode(body, skip_special_tokens=False) == text
    assert (auto.bos_token_id, auto.eos_token_id, auto.pad_token_id) == (1, 2, 2)


@pytest.mark.parametrize(
    ("pre", "wanted"),
    [
        ("smollm", ["1", "2", "3", "Ġa", "Ġthe", "Ġ", "c", "a", "b", "<|im_end|>", "<tool>"]),
        ("qwen2", ["1", "2", "3", "Ġa", "Ġthe", "Ġ", "c", "a", "b", "<|im_end|>", "<tool>"]),
        ("llama-bpe", ["<|im_start|>", "123", "Ġa", "Ġthe", "Ġcab", "<|im_end|>", "<tool>"]),
    ],
)
def test_splitting_rule_decides_what_may_merge(tmp_path: Path, pre: str, wanted: list[str]) -> None:
    """Digits stay single for smollm and qwen2 though `123` can be merged; llama-bpe looks words up whole, BOS first."""
    folder, _, _ = imported(tmp_path, random_tensors(), pre=pre)
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("123 a the cab<|im_end|><tool>").tokens == wanted


def test_chat_template_and_special_tokens(tmp_path: Path) -> None:
    folder, _, _ = imported(tmp_path, random_tensors())
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    chat = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nhi\nassistant\n"
    assert ids.count(1) == 2
    assert tokenizer.decode([0, 2], skip_special_tokens=True) == ""


def test_every_end_of_turn_token_is_a_stop(tmp_path: Path) -> None:
    folder, _, _ = imported(tmp_path, random_tensors(), tokenizer__ggml__eot_token_id=0)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blk.0.attn_v.weight": None}, "1 tensors missing, the first is model.layers.0.self_attn.v_proj.weight"),
        (
            {"blk.0.attn_q_norm.weight": np.ones(HEAD_DIM, np.float32)},
            "too many, the first is blk.0.attn_q_norm.weight",
        ),
        ({"blk.0.ffn_gate_exps.weight": np.ones(4, np.float32)}, "tensor blk.0.ffn_gate_exps.weight is unknown"),
        ({"blk.0.attn_norm.weight": np.full(D_MODEL, np.nan, np.float32)}, "blk.0.attn_norm.weight holds NaN"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, change: dict, message: str) -> None:
    tensors = {name: array for name, array in (random_tensors() | change).items() if array is not None}
    with pytest.raises(WeightError, match=message) as caught:
        imported(tmp_path, tensors)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_foreign_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match="architecture 'gemma'"):
        imported(tmp_path, {}, arch="gemma")
    with pytest.raises(WeightError, match="mixture of experts"):
        imported(tmp_path, random_tensors(), llama__expert_count=8)
    with pytest.raises(WeightError, match="eot token 9999 is outside"):
        imported(tmp_path, random_tensors(), tokenizer__ggml__eot_token_id=9999)
    with pytest.raises(WeightError, match="splitting rule 'other'"):
        imported(tmp_path, random_tensors(), pre="other")


def test_files_that_are_no_gguf(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match="no such file"):
        import_gguf(tmp_path / "absent.gguf", tmp_path / "out")
    page = tmp_path / "page.gguf"
    page.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(WeightError, match="not a GGUF file"):
        import_gguf(page, tmp_path / "out")
    whole = write_gguf(tmp_path / "m.gguf", random_tensors()).read_bytes()
    for keep in (20, 400, len(whole) // 2, len(whole) - 64):
        page.write_bytes(whole[:keep])
        with pytest.raises(WeightError, match="damaged or truncated") as caught:
            import_gguf(page, tmp_path / "out")
        assert "\n" not in str(caught.value)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    file, out = write_gguf(tmp_path / "m.gguf", random_tensors()), tmp_path / "out"
    out.mkdir()
    (out / "precious").touch()
    with pytest.raises(StorageError, match="already exists"):
        import_gguf(file, out)
    assert [path.name for path in out.iterdir()] == ["precious"]
