"""tokenizer.json -> an encoder by tiktoken: the ids of the `tokenizers` library, in a fraction of its time.

Byte-level BPE in two notations: `tokenizers` keeps a list of merges, tiktoken merges the two neighbours that together
are the token of the lowest id. They agree where the merges stand in the order of the ids they make, and the list lacks
no merge that can come up. It lacks none where it makes every token from that token's own bytes: until a merge crosses
the border of some bytes, what is inside them is merged as if it stood alone, so two neighbours that together are a
token are the very pair which that token on its own is made of. Both are read off the file; where either is not so, or
anything in the file is unknown here, there is no encoder.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import tiktoken

Encoder = Callable[[str], list[int]]
Backend = Any
"""A `tokenizers.Tokenizer`."""

# GPT-2's words, each digit its own: a run of blanks ends before a digit as it ends before the end of the text.
DIGITS_THEN_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
MOST_CHARACTERS = 1 << 16
"""Of a text in one call: tiktoken's regular expressions exhaust their stack on a million blanks."""
RECENT_PIECES, SHORT = 4096, 32
"""Pieces of at most `SHORT` characters are remembered: headers stand in every row."""

UNCERTAIN = "\U00010000-\U0001efff\U0001fb00-\U0001ffff\U00030000-\U0010ffff"
"""Characters the two libraries class by Unicode tables of different years; `tokenizers` encodes texts that have one."""


class Pipeline(NamedTuple):
    """What of a tokenizer.json decides the ids of a text without special tokens."""

    pattern: str
    """Cuts a text into words."""
    normalizes: bool
    """True where a text is brought into its composed form first (NFC), which leaves ASCII alone."""
    added: Mapping[str, int]
    """Tokens found in a text before anything else happens to it."""
    ranks: dict[bytes, int]


@lru_cache(maxsize=4)
def rank_encoder(backend: Backend) -> Encoder | None:
    """Ids of a text as `backend.encode` gives them without special tokens; None where that is not certain."""
    pipeline = read_pipeline(backend)
    if pipeline is None:
        return None
    core = tiktoken.Encoding(
        "tokenizer.json", pat_str=pipeline.pattern, mergeable_ranks=pipeline.ranks, special_tokens={}
    )
    longest_first = sorted(pipeline.added, key=len, reverse=True)
    cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
    uncertain = _uncertain(pipeline.ranks)

    def words(piece: str) -> list[int]:
        if len(piece) > MOST_CHARACTERS or uncertain.search(piece):
            return backend.encode(piece, add_special_tokens=False).ids
        if pipeline.normalizes and not piece.isascii():
            piece = backend.normalizer.normalize_str(piece)
        return core.encode_ordinary(piece)

    recent = lru_cache(RECENT_PIECES)(words)

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for piece in cut.split(text) if cut else [text]:
            if piece in pipeline.added:
                ids.append(pipeline.added[piece])
            elif piece:
                ids += recent(piece) if len(piece) <= SHORT else words(piece)
        return ids

    return encode


def read_pipeline(backend: Backend) -> Pipeline | None:
    """What the tokenizer does, if tiktoken can do the same."""
    spec = json.loads(backend.to_str())
    pattern = _pattern(spec["pre_tokenizer"])
    plain = not any(
        token[flag] for token in spec["added_tokens"] for flag in ("lstrip", "rstrip", "single_word", "normalized")
    )
    if not plain or pattern is None or spec["normalizer"] not in (None, {"type": "NFC"}):
        return None
    ranks = _ranks(backend, spec["model"])
    added = {token["content"]: token["id"] for token in spec["added_tokens"]}
    return None if ranks is None else Pipeline(pattern, spec["normalizer"] is not None, added, ranks)


def _pattern(steps: dict[str, Any] | None) -> str | None:
    """The regular expression of the words; None for steps other than those of GPT-2's descendants."""
    match steps:
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            ],
        }:
            return DIGITS_THEN_WORDS
    return None


def _ranks(backend: Backend, model: dict[str, Any]) -> dict[bytes, int] | None:
    """Id by bytes of every token that merging makes; None where merging by id makes something else than the merges."""
    odd = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model["type"] != "BPE" or any(model.get(name) for name in odd):
        return None
    vocabulary, merges = model["vocab"], {(first, second) for first, second in model["merges"]}
    made = [vocabulary[first + second] for first, second in model["merges"]]
    if any(before > after for before, after in pairwise(made)):
        return None
    unmade = set(vocabulary) - _made(backend, vocabulary)
    if model.get("ignore_merges"):  # a word that is a token is that token, however it came to be one
        splits = ((token[:i], token[i:]) for token in unmade for i in range(1, len(token)))
        if any(set(split) <= vocabulary.keys() and split not in merges for split in splits):
            return None
        unmade = set()
    letters = _byte_letters()
    return {bytes(letters[letter] for letter in token): vocabulary[token] for token in vocabulary.keys() - unmade}


def _made(backend: Backend, vocabulary: Mapping[str, int]) -> set[str]:
    """Tokens that the merges make of their own bytes."""
    model = backend.model
    ignores, model.ignore_merges = model.ignore_merges, False
    try:
        return {token for token, number in vocabulary.items() if [one.id for one in model.tokenize(token)] == [number]}
    finally:
        model.ignore_merges = ignores


def _byte_letters() -> dict[str, int]:
    """The byte each letter of a byte-level vocabulary stands for: printable ones for themselves, others shifted."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _uncertain(ranks: Mapping[bytes, int]) -> re.Pattern[str]:
    """Finds characters of which the ids are not certain: those of `UNCERTAIN`, and those with bytes that are no token,
    which `tokenizers` passes over."""
    missing = {byte for byte in range(256) if bytes([byte]) not in ranks}
    ascii_ones = "".join(re.escape(chr(byte)) for byte in missing if byte < 128)
    in_use = {*range(0x80, 0xC0), *range(0xC2, 0xF1)}
    return re.compile(
        f"[{ascii_ones}{chr(0x80)}-{chr(0x10FFFF)}]" if missing & in_use else f"[{ascii_ones}{UNCERTAIN}]"
    )
