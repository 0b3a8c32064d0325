"""Fields of a `config.json`, read with the checks they need: an unusable value is refused by name."""

from typing import Any

from rdro_jax.errors import WeightError


def size(hf: dict[str, Any], name: str, default: int | None = None) -> int:
    """A positive whole number; absent and null mean the default."""
    value = default if hf.get(name) is None else hf[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WeightError(f"{name} is {value!r}; wanted a positive whole number")
    return value


def number(hf: dict[str, Any], name: str, default: float | None = None) -> float:
    """A positive number; absent and null mean the default."""
    value = default if hf.get(name) is None else hf[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise WeightError(f"{name} is {value!r}; wanted a positive number")
    return float(value)


def truth(hf: dict[str, Any], name: str, default: bool = False) -> bool:
    """A truth value; absent and null mean the default."""
    value = default if hf.get(name) is None else hf[name]
    if not isinstance(value, bool):
        raise WeightError(f"{name} is {value!r}; wanted true or false")
    return value
