"""Records -> text by the tokenizer's own chat template, the completion marked by its position; text -> tokens.

Nothing here looks for token ids in the middle of a text: where a completion begins and where its turn ends is read off
the rendered text, so a tokenizer whose padding is its end-of-turn token (SmolLM2), or whose id 0 is a letter (Qwen),
is no special case.
"""

import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from rdro_jax.data.ranks import rank_encoder
from rdro_jax.data.records import NO_VARIABLES, BadRow, Message, Record, shorten, texts_in
from rdro_jax.errors import WeightError
from rdro_jax.hub import model_folder

Tokenizer = Any
"""A transformers tokenizer. Not named by type: importing transformers takes a second, and only loading needs it."""

DEFAULT_TEMPLATE_KWARGS = {"enable_thinking": False}
"""Qwen 3 would otherwise put an empty `<think>` block into every completion, and it would be scored."""

PINNED_DATE = (
    "{%- macro strftime_now(format) -%}"
    "{{ format | replace('%d', '26') | replace('%m', '07') | replace('%b', 'Jul') | replace('%B', 'July')"
    " | replace('%Y', '2024') | replace('%y', '24') | replace('%A', 'Friday') | replace('%a', 'Fri') }}"
    "{%- endmacro -%}"
)
"""Put before a template that asks for today's date, so that a row has the same tokens tomorrow. The day is the one
Llama 3.2's template falls back to; `chat_template_kwargs: {date_string: ...}` wins where the template reads it."""

TEMPLATE_SECONDS = 10
"""A template is a stranger's program: in its sandbox it can write no file, but it can loop."""
TEMPLATE_CHARACTERS = 1 << 24
"""Most that a template may make of one row: some four million tokens, beyond every window."""

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
TEXTS_AT_ONCE = 256
"""Texts tokenised in one call: while it runs, the tokenizers library holds over 100 bytes a token."""

LETTERS_WORTH_RANKS = 1 << 20
"""Characters in one call from which on the faster encoder repays the second that it takes to make."""

TEMPLATE_FILES = ("tokenizer.json", "chat_template.jinja", "tokenizer.model", "vocab.json", "merges.txt")


class Template(NamedTuple):
    """How one tokenizer frames a prompt and a completion: what is the same for every record."""

    text: str | None
    """The chat template with its date pinned; None where prompt and completion are simply concatenated."""
    kwargs: dict[str, Any]
    """Variables of the chat template."""
    tail: str
    """What the chat template writes after the completion's words."""
    end_of_turn: str
    """The beginning of `tail` up to and with the end-of-turn token: trained. What follows it is dropped."""
    prefix: tuple[int, ...]
    """Token ids put before a concatenation: the BOS, where the tokenizer has the habit."""
    suffix: tuple[int, ...]
    """Token ids put after a concatenation: the EOS, where there is one."""
    ends_with_stop: bool
    """True where a completion ends with a special token; a model never shown one does not learn to stop."""
    control: re.Pattern[str] | None = None
    """Finds the tokenizer's special tokens spelled out in a text; None where it has none."""
    header: str = ""
    """What the template writes between the last special token of a prompt and the completion, if a text may be
    tokenised in two pieces there."""


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a model folder, faithful to its tokenizer.json, without network and without foreign code.

    transformers 5 picks a tokenizer class by `model_type` and rebuilds parts of the pipeline for it, which changes
    what unusual files encode to; tokenizer.json is therefore read as it stands wherever there is one.

    Raises: WeightError where the folder has no tokenizer, or one that cannot be read.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would report that torch is absent, as intended
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # here, because it takes a second to import

    folder = model_folder(directory, weights=False)
    if not folder.is_dir():
        raise WeightError(f"{folder}: no such folder; a model folder with tokenizer.json is wanted")
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        # transformers would make a tokenizer without words of its own accord.
        raise WeightError(f"{folder}: no tokenizer.json; copy the model's tokenizer files")
    has_file = (folder / "tokenizer.json").is_file()
    # Clean-up takes spaces out of decoded text, which then no longer is what was encoded.
    options: dict[str, Any] = {"local_files_only": True, "clean_up_tokenization_spaces": False}
    try:
        if has_file:
            return PreTrainedTokenizerFast.from_pretrained(str(folder), **options)
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, **options)
    except Exception as error:  # whatever a damaged file makes the libraries raise
        what = "tokenizer.json cannot be read" if has_file else "no tokenizer that can be read without foreign code"
        raise WeightError(f"{folder}: {what} ({shorten(str(error), 120)}); copy the model's tokenizer files") from None


def tokenizer_hash(directory: str | Path) -> str:
    """128-bit hash, as hex, of the files that decide what a row's tokens are: vocabulary, merges, chat template."""
    digest, folder = xxhash.xxh3_128(), model_folder(directory, weights=False)
    for name in (*TEMPLATE_FILES, "tokenizer_config.json"):
        file = folder / name
        if file.is_file():
            digest.update(f"{name}:{file.stat().st_size}:".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def read_template(tokenizer: Tokenizer, kwargs: Mapping[str, Any] | Sequence[tuple[str, Any]] = ()) -> Template:
    """The tokenizer's way of framing, learnt from rendering one probe conversation.

    Raises: WeightError for a chat template that cannot render one question and its answer, or loses either.
    """
    control = _special_tokens(tokenizer)
    if not tokenizer.chat_template:
        return _concatenation(tokenizer)._replace(control=control)
    text = tokenizer.get_chat_template()
    if "strftime_now" in text:
        text = PINNED_DATE + text
    template = Template(text, {**DEFAULT_TEMPLATE_KWARGS, **dict(kwargs)}, "", "", (), (), False, control)
    try:
        prompt, full = render_text(Record("PROBE QUESTION", "PROBE ANSWER", True, 1.0, 0), tokenizer, template)
    except BadRow as error:
        raise WeightError(
            f"chat template of the tokenizer: {error.reason} {error.got}; see chat_template_kwargs"
        ) from None
    if "PROBE QUESTION" not in prompt or "PROBE ANSWER" not in full[len(prompt) :]:
        raise WeightError("chat template of the tokenizer: does not write out both the prompt and the completion")
    tail = full[full.rindex("PROBE ANSWER") + len("PROBE ANSWER") :]
    stop = control.search(tail) if control else None
    # A template without an end-of-turn token: its closing blanks are layout, not words to learn.
    end_of_turn = tail[: stop.end()] if stop else tail.rstrip()
    template = template._replace(tail=tail, end_of_turn=end_of_turn, ends_with_stop=stop is not None)
    return template._replace(header=_find_header(prompt, full, tokenizer, control))


def _find_header(prompt: str, full: str, tokenizer: Tokenizer, control: re.Pattern[str] | None) -> str:
    """The end of the prompt after its last special token, if a text falls in two there for this tokenizer.

    It does wherever special tokens are cut out before anything else happens to a text, unless they take the blanks
    beside them along, or a text's first word is treated unlike the others.
    """
    found = list(control.finditer(prompt)) if control else []
    if not found:
        return ""
    header = prompt[found[-1].end() :]
    greedy = [token for token in tokenizer.added_tokens_decoder.values() if token.content == found[-1][0]]
    if any(token.lstrip or token.rstrip or token.single_word for token in greedy):
        return ""
    before, rest = full[: found[-1].end()], full[found[-1].end() :]
    whole, first, second = encode([full, before, rest], tokenizer)
    return header if header and whole == [*first, *second] else ""


def _concatenation(tokenizer: Tokenizer) -> Template:
    """Framing without a chat template: BOS where the tokenizer puts one by itself, prompt, completion, EOS."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    puts_bos = tokenizer("a")["input_ids"][:1] == [bos]
    return Template(
        text=None,
        kwargs={},
        tail="",
        end_of_turn="",
        prefix=(int(bos),) if puts_bos else (),
        suffix=() if eos is None else (int(eos),),
        ends_with_stop=eos is not None,
    )


def _special_tokens(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """A pattern of the tokens that steer a model and are never words: end of turn, headers, padding."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    names = sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names))) if names else None


def _refuse_control_tokens(value: object, column: str, template: Template) -> None:
    """Raises BadRow where a text spells a special token, which the tokenizer would read as the token itself: whoever
    writes the row could end a turn, or begin one in another's name."""
    if template.control is None:
        return
    for text in texts_in(value):
        if found := template.control.search(text):
            raise BadRow(column, "spells out a control token of the tokenizer", shorten(found[0]))


def render_text(record: Record, tokenizer: Tokenizer, template: Template) -> tuple[str, str]:
    """Prompt text, as it stands when the model is asked to answer, and full text up to the end of the answer's turn.

    Raises: BadRow where the template refuses the record, or where the full text does not begin with the prompt text.
    """
    if template.text is None:
        return _plain_text(record, template)
    _refuse_control_tokens(record.completion, record.column, template)
    messages, variables = prompt_messages(record.prompt), record.variables
    answer = record.completion
    answer = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    prompt = render_messages(messages, tokenizer, template, variables, add_generation_prompt=True)
    full = render_messages([*messages, answer], tokenizer, template, variables)
    if not full.startswith(prompt):
        raise BadRow(record.column, "the chat template renders the prompt differently once it is answered")
    if not full.endswith(template.tail):
        raise BadRow(record.column, "the chat template ends this turn in an unusual way", shorten(full[-20:]))
    return prompt, full[: len(full) - len(template.tail)] + template.end_of_turn


def prompt_messages(prompt: str | list[Message]) -> list[Message]:
    """The conversation a prompt stands for: text is one message of the user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def render_messages(
    messages: list[Message],
    tokenizer: Tokenizer,
    template: Template,
    variables: Mapping[str, Any] = NO_VARIABLES,
    *,
    add_generation_prompt: bool = False,
) -> str:
    """The chat template's text for a conversation; `variables` are the row's own, before those of the config.

    Raises: BadRow where the template refuses it, takes too long or writes too much, or where a text spells out a
    control token.
    """
    _refuse_control_tokens(messages, "prompt", template)
    for name, value in variables.items():
        _refuse_control_tokens(value, "tools" if name == "tools" else "chat_template_kwargs", template)
    try:
        with time_limit(TEMPLATE_SECONDS):
            text = tokenizer.apply_chat_template(
                messages,
                chat_template=template.text,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **{**template.kwargs, **variables},
            )
    except TimeoutError:
        raise BadRow("prompt", f"the chat template takes longer than {TEMPLATE_SECONDS} s over it") from None
    except Exception as error:  # templates are programs of strangers: roles out of turn raise what they please
        raise BadRow("prompt", "refused by the chat template", shorten(str(error))) from None
    if len(text) > TEMPLATE_CHARACTERS:
        raise BadRow("prompt", f"the chat template makes more than {TEMPLATE_CHARACTERS} characters of it")
    return text


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in what runs longer. In the main thread only, where alone Python handles signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _raise_timeout)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _raise_timeout(*_: object) -> None:
    raise TimeoutError


def render_prompt(
    prompt: str | list[Message], tokenizer: Tokenizer, kwargs: Mapping[str, Any] | Sequence[tuple[str, Any]] = ()
) -> list[int]:
    """Token ids a model is given to answer a prompt: exactly those a training example of that prompt begins with.

    Raises: WeightError for a chat template that cannot be used, BadRow where it refuses the prompt.
    """
    template = read_template(tokenizer, kwargs)
    if template.text is not None:
        text = render_messages(prompt_messages(prompt), tokenizer, template, add_generation_prompt=True)
    else:
        text, _ = _plain_text(Record(prompt, "", True, 1.0, 0), template)
    return [*template.prefix, *encode([text], tokenizer)[0]]


def _plain_text(record: Record, template: Template) -> tuple[str, str]:
    for name, value in (("prompt", record.prompt), (record.column, record.completion)):
        if not isinstance(value, str):
            raise BadRow(name, "is a list of messages, but the tokenizer has no chat template; write it as text")
        if record.variables:
            raise BadRow(
                "row", "has variables for a chat template, but the tokenizer has none", shorten([*record.variables])
            )
        _refuse_control_tokens(value, name, template)
    return str(record.prompt), f"{record.prompt}{record.completion}"


def encode(texts: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of each text, special tokens only where the text spells them out."""
    if not texts:
        return []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
        if sum(map(len, texts)) >= LETTERS_WORTH_RANKS and (by_rank := rank_encoder(backend)):
            return [by_rank(text) for text in texts]
        begins = range(0, len(texts), TEXTS_AT_ONCE)
        batches = (backend.encode_batch_fast(texts[i : i + TEXTS_AT_ONCE], add_special_tokens=False) for i in begins)
        return [encoding.ids for batch in batches for encoding in batch]
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
