"""Rotary embeddings as `config.json` spells them <-> `RopeConfig`. What is not computed is refused."""

import math
from typing import Any

from rdro_jax.errors import WeightError
from rdro_jax.models.config import RopeConfig
from rdro_jax.models.fields import number, size, truth

_WRITTEN = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor", "beta_fast", "beta_slow", "truncate", "attention_factor", "original_max_position_embeddings",
    ),
}  # fmt: skip
"""What each kind stores, named alike in `RopeConfig` and in config.json."""
_READ = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_YARN_ONLY = {"mscale", "mscale_all_dim"}


def read_rope(hf: dict[str, Any]) -> RopeConfig:
    """RoPE from either spelling: `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling`."""
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(hf.get(name), dict | None):
            raise WeightError(f"{name} is {hf[name]!r}; wanted an object or null")
    around = {name: hf.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    given = around | (hf.get("rope_scaling") or {}) | (hf.get("rope_parameters") or {})
    kind = given.get("rope_type", given.get("type", "default"))
    if given.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise WeightError(
            f"partial_rotary_factor is {given['partial_rotary_factor']}; this decoder rotates whole heads (1.0)"
        )
    if kind not in _WRITTEN:
        supported = ", ".join(repr(known) for known in _WRITTEN)
        raise WeightError(f"rope type {kind!r} is not supported; supported: {supported}")
    _refuse_unknown(given, kind)
    theta, context = number(given, "rope_theta", 10000.0), hf.get("max_position_embeddings")
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig("linear", theta, number(given, "factor"))
    return _read_llama3(given, theta, context) if kind == "llama3" else _read_yarn(given, theta, context)


def _refuse_unknown(given: dict[str, Any], kind: str) -> None:
    """Raise for a number of a kind that does not read it: the file means something else than we would compute."""
    known = _READ | set(_WRITTEN[kind]) | (_YARN_ONLY if kind == "yarn" else set())
    # transformers writes the numbers of other kinds as null, and the plain kind is given a factor of 1 by some.
    unknown = [name for name, value in given.items() if name not in known and value not in (None, 1, 1.0)]
    if unknown:
        raise WeightError(f"{unknown[0]} is {given[unknown[0]]!r}; rope type {kind!r} does not read it")


def _read_llama3(given: dict[str, Any], theta: float, context: Any) -> RopeConfig:
    factor, low, high = (number(given, name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    original = size(given, "original_max_position_embeddings", context)
    if not (factor >= 1 and high > low > 0):
        raise WeightError(
            f"llama3 rope wants factor >= 1 and high_freq_factor > low_freq_factor > 0, got {factor}, {high}, {low}"
        )
    return RopeConfig("llama3", theta, factor, low, high, original)


def _read_yarn(given: dict[str, Any], theta: float, context: Any) -> RopeConfig:
    original = size(given, "original_max_position_embeddings", context)
    factor = number(given, "factor", None if context is None else context / original)
    fast, slow = number(given, "beta_fast", 32.0), number(given, "beta_slow", 1.0)
    if not (factor >= 1 and fast > slow):
        raise WeightError(f"yarn rope wants factor >= 1 and beta_fast > beta_slow, got {factor}, {fast}, {slow}")
    return RopeConfig(
        "yarn",
        theta,
        factor,
        original_max_position_embeddings=original,
        beta_fast=fast,
        beta_slow=slow,
        truncate=truth(given, "truncate", True),
        attention_factor=_yarn_attention_factor(given, factor),
    )


def _yarn_attention_factor(given: dict[str, Any], factor: float) -> float:
    """What cosines and sines are multiplied by: as given, else a ratio of two scales, else the paper's 0.1 ln s + 1."""
    if given.get("attention_factor") is not None:
        return number(given, "attention_factor")

    def magnitude(slope: float) -> float:
        return 0.1 * slope * math.log(factor) + 1.0

    if given.get("mscale") and given.get("mscale_all_dim"):
        return magnitude(number(given, "mscale")) / magnitude(number(given, "mscale_all_dim"))
    return magnitude(1.0)


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, in the spelling every version of transformers reads."""
    scaling = {"rope_type": rope.kind} | {name: getattr(rope, name) for name in _WRITTEN[rope.kind]}
    return {"rope_theta": rope.theta, "rope_scaling": None if rope.kind == "default" else scaling}
