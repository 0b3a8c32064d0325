"""Do the token ids of a data set mean the same words to every model that reads them?"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from rdro_jax.data.chat import load_tokenizer
from rdro_jax.errors import WeightError

BLOCK = 1 << 22


def check_words(tokens: Int[np.ndarray, "tokens"], vocabularies: Mapping[str, int]) -> None:
    """Return if every model knows all `tokens`, by the words they stand for. The tokens are the first model's.

    `vocabularies` holds the rows of each model folder's embedding. Another tokenizer in the reference would give
    log-probs of other words, without a sign.

    Raises: WeightError naming the folder and the token.
    """
    # Block by block, because the tokens may be on disk and more than memory holds.
    blocks = [np.unique(tokens[begin : begin + BLOCK]) for begin in range(0, len(tokens), BLOCK)]
    used = np.unique(np.concatenate(blocks)).tolist()
    ours, *others = vocabularies
    for folder, size in vocabularies.items():
        if used[-1] >= size:
            raise WeightError(
                f"{folder}: its tokenizer makes token {used[-1]}, beyond the vocabulary of {size} in config.json; "
                "give the model its own tokenizer files"
            )
    for folder in others:
        _check_same(used, ours, folder)


def _check_same(used: list[int], ours: str, folder: str) -> None:
    mine, theirs = (load_tokenizer(path).convert_ids_to_tokens(used) for path in (ours, folder))
    for token, here, there in zip(used, mine, theirs, strict=True):
        if here != there:
            raise WeightError(
                f"{folder}: another tokenizer than that of {ours}: token {token} is {there!r}, there {here!r}; "
                "policy and reference have to share one"
            )
