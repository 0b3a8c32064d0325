"""GGUF -> Hugging Face folder: config, float32 weights, tokenizer and chat template, with numpy only.

A GGUF file holds everything a model needs in one place, often quantised. Quantised weights are expanded to float32;
what quantisation took away stays lost, so the folder is a *dequantised* model.
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from rdro_jax.errors import ConfigError, StorageError, WeightError
from rdro_jax.models.folder import Entry, write_tensors

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# GGUF tensor names -> Hugging Face names, without `.weight` / `.bias`; `blk.3.` becomes `model.layers.3.`.
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# What a byte-level BPE splits on before merging, by the name GGUF gives it (`tokenizer.ggml.pre`).
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REMAINDER = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLIT_PATTERNS = {
    "llama-bpe": CONTRACTIONS + r"\p{N}{1,3}" + REMAINDER,
    "qwen2": CONTRACTIONS + r"\p{N}" + REMAINDER,
}
CONTROL, USER_DEFINED = 3, 4
"""Token types of GGUF that never take part in merges: markers such as <|im_end|>, and user-defined tokens."""


class Gguf(NamedTuple):
    """An open GGUF file: its metadata as plain Python values, and its tensors, dequantised when asked for."""

    file: Path
    metadata: dict[str, Any]
    tensors: dict[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a metadata key, `default` where the file has none."""
        return self.metadata.get(key, default)

    def need(self, key: str) -> Any:
        """The value of a metadata key. Raises: WeightError where the file has none."""
        if key not in self.metadata:
            raise WeightError(f"{self.file}: metadata key {key!r} is missing; convert the model to GGUF anew")
        return self.metadata[key]


def import_gguf(file: str | os.PathLike[str], out_dir: str | os.PathLike[str]) -> Path:
    """The Hugging Face folder made from a GGUF file: float32 safetensors, config, tokenizer with chat template.

    Weights are written one tensor at a time, so the host needs memory for the largest tensor only.

    Raises:
        WeightError: not a GGUF file, an architecture or tokenizer we do not know, missing or unknown tensors.
        StorageError: `out_dir` already holds something, or cannot be written.
    """
    out = Path(out_dir)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(f"{out}: already exists; name a new folder or remove this one")
    source = read_gguf(Path(file))
    config = config_of(source)
    names = weight_names(source, config)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            folder = Path(scratch) / "model"
            folder.mkdir()
            stops = generation_config_of(source)
            write_json(folder / "config.json", config | stops)
            write_json(folder / "generation_config.json", stops)
            write_tokenizer(source, folder)
            write_weights(source, names, config, folder / "model.safetensors")
            if out.exists():
                out.rmdir()
            folder.rename(out)
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"{out}: cannot be written ({reason}); free space or choose another folder") from None
    return out


def read_gguf(file: Path) -> Gguf:
    """The metadata and memory-mapped tensors of a GGUF file."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ConfigError("reading GGUF needs the gguf package: pip install 'rdro_jax[gguf]'") from None
    if not file.is_file():
        raise WeightError(f"{file}: no such file; give the path of a .gguf file")
    with file.open("rb") as stream:
        if (magic := stream.read(4)) != b"GGUF":
            raise WeightError(f"{file}: begins with {magic!r}, wanted b'GGUF'; this is not a GGUF file")
    try:
        reader = GGUFReader(file)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, KeyError, IndexError, OverflowError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightError(f"{file}: damaged or truncated GGUF ({reason}); download it again") from None
    return Gguf(file, metadata, {tensor.name: tensor for tensor in reader.tensors})


def config_of(source: Gguf) -> dict[str, Any]:
    """The config.json of the model, from GGUF metadata."""
    arch = source.need("general.architecture")
    if arch not in ARCHITECTURES:
        raise WeightError(f"{source.file}: architecture {arch!r}; known are {', '.join(ARCHITECTURES)}")
    if source.get(f"{arch}.expert_count"):
        raise WeightError(f"{source.file}: a mixture of experts; only dense models are supported")
    n_heads, d_model = source.need(f"{arch}.attention.head_count"), source.need(f"{arch}.embedding_length")
    config = {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "vocab_size": int(tensor_shape(source, "token_embd.weight")[0]),
        "hidden_size": d_model,
        "intermediate_size": source.need(f"{arch}.feed_forward_length"),
        "num_hidden_layers": source.need(f"{arch}.block_count"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": source.get(f"{arch}.attention.head_count_kv", n_heads),
        "head_dim": source.get(f"{arch}.attention.key_length", d_model // n_heads),
        "max_position_embeddings": source.need(f"{arch}.context_length"),
        "rms_norm_eps": shortest_float32(source.need(f"{arch}.attention.layer_norm_rms_epsilon")),
        "rope_theta": shortest_float32(source.get(f"{arch}.rope.freq_base", 10000.0)),
        "rope_scaling": rope_scaling_of(source, arch),
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "use_cache": True,
    }
    return config | {"attention_bias": False, "mlp_bias": False} if arch == "llama" else config


def rope_scaling_of(source: Gguf, arch: str) -> dict[str, Any] | None:
    """The `rope_scaling` entry of config.json: None, or llama3 recovered from the stored frequency factors.

    GGUF keeps the result of the llama3 rule, one factor per frequency, not its four numbers. Every published Llama 3.x
    uses low 1, high 4, original length 8192; the factor is then the largest entry. Anything else is refused.
    """
    kind = source.get(f"{arch}.rope.scaling.type", "none")
    if kind != "none" and source.get(f"{arch}.rope.scaling.factor", 1.0) != 1.0:
        raise WeightError(f"{source.file}: rope scaling {kind!r}; only plain rope and the llama3 rule are known")
    if "rope_freqs.weight" not in source.tensors:
        return None
    stored = read_tensor(source, "rope_freqs.weight")
    theta = source.get(f"{arch}.rope.freq_base", 10000.0)
    scaling = {
        "rope_type": "llama3",
        "factor": float(round(stored.max(), 3)),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if not np.allclose(stored, llama3_factors(len(stored), theta, scaling), rtol=1e-4):
        raise WeightError(f"{source.file}: rope_freqs.weight is not Llama 3's rope scaling; no other is known")
    return scaling


def llama3_factors(n: int, theta: float, scaling: dict[str, Any]) -> Float[np.ndarray, "n"]:
    """By how much llama3 rope scaling divides each of the `n` rope frequencies (float64)."""
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    wavelength = 2 * np.pi * theta ** (np.arange(n) / n)
    smooth = (scaling["original_max_position_embeddings"] / wavelength - low) / (high - low)
    smooth = np.clip(smooth, 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / factor + smooth)


def generation_config_of(source: Gguf) -> dict[str, Any]:
    """The generation_config.json: every token that ends a turn or a text is a stop token."""
    stops = {index for name in ("eos", "eot", "eom") if (index := special_id(source, name)) is not None}
    ids = {"bos_token_id": special_id(source, "bos"), "eos_token_id": sorted(stops)}
    return {key: value for key, value in ids.items() if value is not None}


# --- weights ---------------------------------------------------------------------------------------------------------


def weight_names(source: Gguf, config: dict[str, Any]) -> dict[str, str]:
    """Hugging Face name -> GGUF name of every tensor of the model. Raises on missing and unknown tensors."""
    names = {hf_name(source, name): name for name in source.tensors if name != "rope_freqs.weight"}
    wanted = expected_names(config)
    if missing := sorted(wanted - names.keys()):
        raise WeightError(f"{source.file}: {len(missing)} tensors missing, the first is {missing[0]}")
    if unknown := sorted(names.keys() - wanted):
        raise WeightError(f"{source.file}: {len(unknown)} tensors too many, the first is {names[unknown[0]]}")
    return dict(sorted(names.items()))


def hf_name(source: Gguf, name: str) -> str:
    """The Hugging Face name of a GGUF tensor: `blk.0.attn_q.weight` -> `model.layers.0.self_attn.q_proj.weight`."""
    stem, _, kind = name.rpartition(".")
    parts = stem.split(".")
    if stem in TOP_NAMES:
        return f"{TOP_NAMES[stem]}.{kind}"
    if len(parts) == 3 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in LAYER_NAMES:
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.{kind}"
    raise WeightError(f"{source.file}: tensor {name} is unknown; known are dense llama, qwen2 and qwen3 models")


def expected_names(config: dict[str, Any]) -> set[str]:
    """Every Hugging Face tensor name a model of this config has."""
    absent = set() if config["model_type"] == "qwen3" else {"self_attn.q_norm", "self_attn.k_norm"}
    in_layer = {f"{name}.weight" for name in LAYER_NAMES.values() if name not in absent}
    if config["model_type"] == "qwen2":
        in_layer |= {f"self_attn.{name}_proj.bias" for name in "qkv"}
    top = {"model.embed_tokens.weight", "model.norm.weight"}
    top |= set() if config["tie_word_embeddings"] else {"lm_head.weight"}
    return top | {f"model.layers.{i}.{name}" for i in range(config["num_hidden_layers"]) for name in in_layer}


def read_tensor(source: Gguf, name: str) -> np.ndarray:
    """A tensor in float32, in Hugging Face's axis order (GGUF lists the fastest axis first)."""
    from gguf.quants import dequantize

    tensor = source.tensors[name]
    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        kind = tensor.tensor_type.name
        raise WeightError(f"{source.file}: tensor {name} is stored as {kind}, which cannot be expanded") from None
    values = np.asarray(values, np.float32).reshape(tensor_shape(source, name))
    if not np.isfinite(values).all():
        raise WeightError(f"{source.file}: tensor {name} holds NaN or infinity; download the file again")
    return values


def tensor_shape(source: Gguf, name: str) -> tuple[int, ...]:
    """The shape of a tensor in Hugging Face's axis order."""
    if name not in source.tensors:
        raise WeightError(f"{source.file}: tensor {name} is missing")
    return tuple(int(size) for size in reversed(source.tensors[name].shape))


def unpermute(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """q or k rows in rotate-half order, from the interleaved order that GGUF stores for llama."""
    per_head = weight.reshape(n_heads, -1, 2, *weight.shape[1:])
    return per_head.swapaxes(1, 2).reshape(weight.shape)


def row_order(config: dict[str, Any]) -> Callable[[str, np.ndarray], np.ndarray]:
    """A function of (Hugging Face name, array) that undoes the row order GGUF stores llama's q and k in."""
    heads = {"q_proj.weight": config["num_attention_heads"], "k_proj.weight": config["num_key_value_heads"]}

    def reorder(name: str, array: np.ndarray) -> np.ndarray:
        n_heads = heads.get(".".join(name.split(".")[-2:]))
        return array if n_heads is None or config["model_type"] != "llama" else unpermute(array, n_heads)

    return reorder


def write_weights(source: Gguf, names: dict[str, str], config: dict[str, Any], path: Path) -> None:
    """Writes the safetensors file, float32, one dequantised tensor in memory at a time."""
    reorder = row_order(config)

    def entry(hf: str, name: str) -> Entry:
        numbers = lambda: reorder(hf, read_tensor(source, name))  # noqa: E731
        return Entry(hf, tensor_shape(source, name), np.dtype(np.float32), numbers)

    write_tensors(path, [entry(hf, name) for hf, name in names.items()])


# --- tokenizer -------------------------------------------------------------------------------------------------------


def write_tokenizer(source: Gguf, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json (special tokens by name, chat template)."""
    build_tokenizer(source).save(str(folder / "tokenizer.json"))
    tokens = source.need("tokenizer.ggml.tokens")
    named = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    ids = {name: special_id(source, theirs) for name, theirs in named.items()}
    special = {f"{name}_token": tokens[index] for name, index in ids.items() if index is not None}
    write_json(
        folder / "tokenizer_config.json",
        {
            # By name: AutoTokenizer would otherwise pick a class by model_type and change the ids.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": source.need(f"{source.need('general.architecture')}.context_length"),
            "chat_template": source.get("tokenizer.chat_template"),
            **special,
        },
    )


def special_id(source: Gguf, name: str) -> int | None:
    """The id of the token GGUF calls `name` (bos, eos, eot ...), None where the file names none."""
    index, n_tokens = source.get(f"tokenizer.ggml.{name}_token_id"), len(source.need("tokenizer.ggml.tokens"))
    if index is not None and not 0 <= index < n_tokens:
        raise WeightError(f"{source.file}: {name} token {index} is outside the vocabulary of {n_tokens}")
    return index


def build_tokenizer(source: Gguf) -> Any:
    """A byte-level BPE `tokenizers.Tokenizer` from the vocabulary, merges and token types of the file."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    if (kind := source.need("tokenizer.ggml.model")) != "gpt2":
        raise WeightError(f"{source.file}: tokenizer {kind!r}; only byte-level BPE ('gpt2') is known")
    tokens, types = source.need("tokenizer.ggml.tokens"), source.need("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in source.need("tokenizer.ggml.merges")]
    pre = source.get("tokenizer.ggml.pre", "default")
    vocab = {token: index for index, token in enumerate(tokens)}
    # Llama 3 looks a whole word up before merging it; the others always merge.
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre == "llama-bpe"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = splitter(source, pre)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = bos_first(source, tokens, pre)
    marked = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False) for token, kind in marked])
    return tokenizer


def splitter(source: Gguf, pre: str) -> tuple[Any, Any]:
    """(normalizer or None, pre-tokenizer) of the splitting rule called `pre`."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return None, pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if pre not in SPLIT_PATTERNS:
        known = ", ".join(["smollm", *SPLIT_PATTERNS])
        raise WeightError(f"{source.file}: tokenizer splitting rule {pre!r}; known are {known}")
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERNS[pre]), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return (normalizers.NFC() if pre == "qwen2" else None), pre_tokenizers.Sequence([split, to_bytes])


def bos_first(source: Gguf, tokens: list[str], pre: str) -> Any:
    """The post-processor: puts BOS before a text where the file says so (Llama 3 means so when it says nothing)."""
    from tokenizers import processors

    bos = special_id(source, "bos")
    if bos is None or not source.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        return processors.ByteLevel(trim_offsets=False)
    name = tokens[bos]
    return processors.TemplateProcessing(single=f"{name} $A", pair=f"{name} $A $B", special_tokens=[(name, bos)])


# --- small things ----------------------------------------------------------------------------------------------------


def shortest_float32(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON file, letters beyond ASCII as they are: a chat template has them."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
