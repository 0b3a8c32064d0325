"""The oracle of every id here is the `tokenizers` library."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from rdro_jax.data import chat
from rdro_jax.data.ranks import MOST_CHARACTERS, rank_encoder

WORDS = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MERGES = ["a b", "Ġ a", "ab c", "Ġ Ġ", "b a", "Ċ Ċ", "ab ab", "1 2", "Ã ©", "Ġa b", "' s", "ĠĠ ĠĠ"]
"""`Ġa b` never comes up, since `a b` does before it: no merge makes the token `Ġab`."""
LETTERS = "aabbcccs '  12\n\r\tS.é中😀ſ\u0301\u00a0\U00010380"


def split(pattern=WORDS):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def digits():
    return pre_tokenizers.Digits(individual_digits=True)


def backend(
    words, *, merges=MERGES, extra=(), without=(), use_regex=False, normalizer=None, added=("<|end|>",), **options
):
    """Byte-level BPE: ids are the bytes', then the merges' in their order, then those of tokens no merge makes."""
    pairs = [tuple(merge.split(" ")) for merge in merges]
    made = dict.fromkeys("".join(pair) for pair in pairs)
    letters = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(without))
    vocabulary = {token: number for number, token in enumerate([*letters, *made, *extra])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, **options))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    made.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    if normalizer:
        made.normalizer = normalizer
    made.add_special_tokens([AddedToken(one) if isinstance(one, str) else one for one in added])
    return made


KINDS = {
    "qwen": lambda: backend(split(), normalizer=normalizers.NFC(), added=("<|end|>", "<|end|>s")),
    "llama": lambda: backend(split(), merges=MERGES[:-3], extra=["acc"], ignore_merges=True),
    "smollm": lambda: backend(digits(), use_regex=True, extra=["bc", "<|end|>"], without=["č", "ö"]),
    "one missing": lambda: backend(split(), without=["ä"]),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return KINDS[request.param]()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_ids_are_those_of_tokenizers(kind, data):
    encode = rank_encoder(kind)
    parts = st.text(LETTERS, max_size=30) | st.sampled_from(["<|end|>", "<|end|>s", "<|end", "abab", "  12  ab's"])
    text = "".join(data.draw(st.lists(parts, max_size=6)))
    assert encode(text) == kind.encode(text, add_special_tokens=False).ids


def test_a_token_no_merge_makes_is_made_by_none():
    made = backend(split(), extra=["bc"])
    assert rank_encoder(made)("cbc") == made.encode("cbc", add_special_tokens=False).ids
    assert len(rank_encoder(made)("cbc")) == 3


def test_blanks_before_a_digit_stay_together():
    made = backend(digits(), use_regex=True)
    assert rank_encoder(made)("a    1") == made.encode("a    1", add_special_tokens=False).ids
    assert len(rank_encoder(made)("a    1")) == 3


def test_a_text_that_exhausts_regular_expressions_is_tokenised_all_the_same():
    made, text = backend(split()), " " * 1_000_000 + "x"
    assert len(text) > MOST_CHARACTERS
    assert rank_encoder(made)(text) == made.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "made",
    [
        lambda: backend(split(), merges=["a b", "ab c", "b c"], extra=["bcd"], ignore_merges=True, added=[]),
        lambda: backend(split(), added=[AddedToken("<|end|>", lstrip=True)]),
        lambda: backend(split(), added=[AddedToken("<|end|>", normalized=True)]),
        lambda: backend(split(), normalizer=normalizers.NFKC()),
        lambda: backend(split(), dropout=0.1),
        lambda: backend(split(), byte_fallback=True),
        lambda: backend(split(), use_regex=True),
        lambda: backend(pre_tokenizers.Whitespace()),
        lambda: Tokenizer(models.WordLevel({"a": 0}, unk_token="a")),
    ],
)
def test_what_is_not_certain_has_no_encoder(made):
    assert rank_encoder(made()) is None


def test_merges_out_of_order_have_no_encoder():
    made = backend(split(), merges=["a b", "b c"])
    order = Tokenizer.from_str(made.to_str().replace('["a","b"],["b","c"]', '["b","c"],["a","b"]'))
    assert order.encode("abc").ids != made.encode("abc").ids
    assert rank_encoder(order) is None


def test_many_texts_are_encoded_by_rank_to_the_same_ids(chatml, monkeypatch):
    texts = ["Say hello.\n\n", "<|im_start|>user\nhello<|im_end|>", "", "  x\u0301 😀"]
    slow = chat.encode(texts, chatml)
    monkeypatch.setattr(chat, "LETTERS_WORTH_RANKS", 1)
    called = []
    monkeypatch.setattr(chat, "rank_encoder", lambda made: called.append(1) or rank_encoder(made))
    assert chat.encode(texts, chatml) == slow
    assert called
