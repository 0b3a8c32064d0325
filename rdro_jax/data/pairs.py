"""Unpaired examples -> pairs: a desirable and an undesirable completion of one prompt."""

from collections import deque

import numpy as np
from jaxtyping import Int64

Arrays = dict[str, np.ndarray]
NO_COUNTERPART = "no other row of its prompt with the other label is left to pair it with"


def pair_up(arrays: Arrays) -> Int64[np.ndarray, "pairs two"]:
    """Pairs (desirable, undesirable) of examples with one prompt, in the order in which pairs become complete.

    Each example is in one pair at most, the earliest first, so a prompt has as many pairs as its rarer class examples.
    Examples whose prompts were cut differently, or that became the same tokens, are no pair.
    """
    waiting: dict[tuple[int, bool], deque[int]] = {}
    pairs: list[tuple[int, int]] = []
    labels = zip(arrays["prompt_hashes"].tolist(), arrays["desirable"].tolist(), strict=True)
    for index, (prompt, desirable) in enumerate(labels):
        others = waiting.get((prompt, not desirable))
        if not others:
            waiting.setdefault((prompt, desirable), deque()).append(index)
        else:
            other = others.popleft()
            pairs.append((index, other) if desirable else (other, index))
    ends = np.cumsum(arrays["lengths"], dtype=np.int64)
    sound = [pair for pair in pairs if _is_pair(arrays, ends, *pair)]
    return np.array(sound, np.int64).reshape(-1, 2)


def _is_pair(arrays: Arrays, ends: Int64[np.ndarray, "examples"], one: int, other: int) -> bool:
    """True where as much of the one prompt is left in both, and the completions are not the same."""
    if arrays["prompt_lengths"][one] != arrays["prompt_lengths"][other]:
        return False
    first, second = (arrays["tokens"][ends[i] - arrays["lengths"][i] : ends[i]] for i in (one, other))
    return not np.array_equal(first, second)


def take(arrays: Arrays, order: Int64[np.ndarray, "taken"]) -> Arrays:
    """The examples of `order`, in memory."""
    ends = np.cumsum(arrays["lengths"], dtype=np.int64)
    tokens = [arrays["tokens"][ends[i] - arrays["lengths"][i] : ends[i]] for i in order]
    nothing = np.zeros(0, np.int32)
    return {name: np.concatenate([nothing, *tokens]) if name == "tokens" else arrays[name][order] for name in arrays}
