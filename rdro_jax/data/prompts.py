"""What the rows of one prompt say together: how often a completion of it is preferred."""

import numpy as np
from jaxtyping import Bool, Float32

from rdro_jax.data.examples import Examples

LEAST_RATE = 0.05
"""No prompt's rate is taken for less: losses divide by it, and one preferred example would outweigh the batch."""


def prompt_rates(examples: Examples) -> Float32[np.ndarray, "examples"]:
    """Share of desirable completions among those of each example's prompt, at least `LEAST_RATE`.

    The rows' `alpha` column where there is one; else the rate of the *other* examples of the prompt, since an example's
    own label would tell what its loss is to learn. A prompt with one example has the rate of all.
    """
    assert examples.prompt_hashes is not None, "examples made without rows have no prompts to compare"
    _, group = np.unique(examples.prompt_hashes, return_inverse=True)
    others = np.bincount(group)[group] - 1
    positives = np.bincount(group, weights=examples.desirable)[group] - examples.desirable
    rates = np.where(others > 0, positives / np.maximum(1, others), examples.desirable.mean())
    if examples.prompt_alpha is not None:
        rates = np.where(np.isnan(examples.prompt_alpha), rates, examples.prompt_alpha)
    return np.maximum(rates, LEAST_RATE).astype(np.float32)


def shared_prompts(examples: Examples, others: Examples) -> Bool[np.ndarray, "examples"]:
    """True where an example's prompt is one of the others' prompts: such an example is held out in name only."""
    assert examples.prompt_hashes is not None
    assert others.prompt_hashes is not None
    return np.isin(examples.prompt_hashes, others.prompt_hashes)
