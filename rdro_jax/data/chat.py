"""Records -> tokens, rendered once with the tokenizer's own chat template, the completion marked by its position.

Nothing here looks for token ids in the middle of a text: where a completion begins and where its turn ends is read off
the rendered text, so a tokenizer whose padding is its end-of-turn token (SmolLM2), or whose id 0 is a letter (Qwen),
is no special case.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from jaxtyping import Int32

from rdro_jax.data.config import DataConfig
from rdro_jax.data.records import BadRow, Message, Record, shorten
from rdro_jax.errors import WeightError

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


class Rendered(NamedTuple):
    """One example as tokens."""

    tokens: Int32[np.ndarray, "tokens"]
    prompt_length: int
    """Tokens before the completion."""
    ends_with_stop: bool
    """True where the last token is the end of the turn."""
    truncated: bool
    """True where something was cut."""


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a model folder, faithful to its tokenizer.json, without network and without foreign code.

    transformers 5 picks a tokenizer class by `model_type` and rebuilds parts of the pipeline for it, which changes
    what unusual files encode to; tokenizer.json is therefore read as it stands wherever there is one.

    Raises: WeightError where the folder has no tokenizer, or one that cannot be read.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would report that torch is absent, as intended
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # here, because it takes a second to import

    folder = Path(directory)
    if not folder.is_dir():
        raise WeightError(f"{folder}: no such folder; a model folder with tokenizer.json is wanted")
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
    digest = xxhash.xxh3_128()
    for name in (*TEMPLATE_FILES, "tokenizer_config.json"):
        file = Path(directory) / name
        if file.is_file():
            digest.update(f"{name}:{file.stat().st_size}:".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def read_template(tokenizer: Tokenizer, kwargs: Mapping[str, Any] | Sequence[tuple[str, Any]] = ()) -> Template:
    """The tokenizer's way of framing, learnt from rendering one probe conversation.

    Raises: WeightError for a chat template that cannot render one question and its answer, or loses either.
    """
    if not tokenizer.chat_template:
        return _concatenation(tokenizer)
    text = tokenizer.get_chat_template()
    if "strftime_now" in text:
        text = PINNED_DATE + text
    template = Template(text, {**DEFAULT_TEMPLATE_KWARGS, **dict(kwargs)}, "", "", (), (), False)
    try:
        prompt, full = render_text(Record("PROBE QUESTION", "PROBE ANSWER", True, 1.0, 0), tokenizer, template)
    except BadRow as error:
        raise WeightError(
            f"chat template of the tokenizer: {error.reason} {error.got}; see chat_template_kwargs"
        ) from None
    if "PROBE QUESTION" not in prompt or "PROBE ANSWER" not in full[len(prompt) :]:
        raise WeightError("chat template of the tokenizer: does not write out both the prompt and the completion")
    tail = full[full.rindex("PROBE ANSWER") + len("PROBE ANSWER") :]
    stop = _special_token_in(tail, tokenizer)
    # A template without an end-of-turn token: its closing blanks are layout, not words to learn.
    end_of_turn = tail[: stop.end()] if stop else tail.rstrip()
    return template._replace(tail=tail, end_of_turn=end_of_turn, ends_with_stop=stop is not None)


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


def _special_token_in(text: str, tokenizer: Tokenizer) -> re.Match[str] | None:
    """The first special token written out in the text."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    names = sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True)
    return re.search("|".join(map(re.escape, names)), text) if names else None


def render_text(record: Record, tokenizer: Tokenizer, template: Template) -> tuple[str, str]:
    """Prompt text, as it stands when the model is asked to answer, and full text up to the end of the answer's turn.

    Raises: BadRow where the template refuses the record, or where the full text does not begin with the prompt text.
    """
    if template.text is None:
        return _plain_text(record)
    messages = prompt_messages(record.prompt)
    answer = record.completion
    answer = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    prompt = render_messages(messages, tokenizer, template, add_generation_prompt=True)
    full = render_messages([*messages, answer], tokenizer, template)
    if not full.startswith(prompt):
        raise BadRow("completion", "the chat template renders the prompt differently once it is answered")
    if not full.endswith(template.tail):
        raise BadRow("completion", "the chat template ends this turn in an unusual way", shorten(full[-20:]))
    return prompt, full[: len(full) - len(template.tail)] + template.end_of_turn


def prompt_messages(prompt: str | list[Message]) -> list[Message]:
    """The conversation a prompt stands for: text is one message of the user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def render_messages(
    messages: list[Message], tokenizer: Tokenizer, template: Template, *, add_generation_prompt: bool = False
) -> str:
    """The chat template's text for a conversation.

    Raises: BadRow where the template refuses it.
    """
    try:
        return tokenizer.apply_chat_template(
            messages,
            chat_template=template.text,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **template.kwargs,
        )
    except Exception as error:  # templates are programs of strangers: roles out of turn raise what they please
        raise BadRow("prompt", "refused by the chat template", shorten(str(error))) from None


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
        text, _ = _plain_text(Record(prompt, "", True, 1.0, 0))
    return [*template.prefix, *encode([text], tokenizer)[0]]


def _plain_text(record: Record) -> tuple[str, str]:
    for name, value in (("prompt", record.prompt), ("completion", record.completion)):
        if not isinstance(value, str):
            raise BadRow(name, "is a list of messages, but the tokenizer has no chat template; write it as text")
    return str(record.prompt), f"{record.prompt}{record.completion}"


def render(record: Record, tokenizer: Tokenizer, template: Template, config: DataConfig) -> Rendered:
    """One record as tokens; see `render_records`.

    Raises: BadRow.
    """
    [rendered] = render_records([record], tokenizer, template, config)
    if isinstance(rendered, BadRow):
        raise rendered
    return rendered


def render_records(
    records: Sequence[Record], tokenizer: Tokenizer, template: Template, config: DataConfig
) -> list[Rendered | BadRow]:
    """Tokens of each record, or what is wrong with it, in order. Tokenises all of them in one call.

    A full text's tokens must begin with the prompt's own tokens, because those are what the model is given when it
    answers. Where a merge runs across the border (a completion that begins with a line break), prompt and
    completion are tokenised apart, provided that reads back as the same text.
    """
    texts = [_attempt(render_text, record, tokenizer, template) for record in records]
    sound = [text for text in texts if not isinstance(text, BadRow)]
    encoded = iter(
        zip(sound, encode([p for p, _ in sound], tokenizer), encode([f for _, f in sound], tokenizer), strict=True)
    )
    results: list[Rendered | BadRow] = []
    for record, text in zip(records, texts, strict=True):
        if isinstance(text, BadRow):
            results.append(text)
        else:
            results.append(_attempt(_assemble, record, *next(encoded), tokenizer, template, config))
    return results


def encode(texts: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of each text, special tokens only where the text spells them out."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _attempt(function: Any, *args: Any) -> Any:
    """The function's value, or the BadRow it raised."""
    try:
        return function(*args)
    except BadRow as fault:
        return fault


def _assemble(
    record: Record,
    texts: tuple[str, str],
    prompt: list[int],
    full: list[int],
    tokenizer: Tokenizer,
    template: Template,
    config: DataConfig,
) -> Rendered:
    """Prompt ids and full ids -> one example that fits the window."""
    if full[: len(prompt)] != prompt:
        full = _tokenise_apart(texts, prompt, full, tokenizer)
    tokens = [*template.prefix, *full, *template.suffix]
    prompt_length = len(template.prefix) + len(prompt)
    bos = tokenizer.bos_token_id
    if bos is not None and tokens[:2] == [bos, bos]:
        raise BadRow("prompt", "begins with two BOS tokens; remove the one written out in the text")
    if prompt_length == 0:
        raise BadRow("prompt", "becomes no tokens, so nothing predicts the first token of the completion")
    if len(full) == len(prompt):
        raise BadRow("completion", "becomes no tokens")
    if len(tokens) <= config.max_length:
        return Rendered(np.array(tokens, np.int32), prompt_length, template.ends_with_stop, False)
    return _truncate(record, tokens, prompt_length, tokenizer, template, config)


def _tokenise_apart(texts: tuple[str, str], prompt: list[int], full: list[int], tokenizer: Tokenizer) -> list[int]:
    """Prompt ids and then the completion's own ids, if they read back as the same text."""
    apart = [*prompt, *encode([texts[1][len(texts[0]) :]], tokenizer)[0]]
    if tokenizer.decode(apart) != tokenizer.decode(full):
        raise BadRow(
            "completion", "its first token merges with the end of the prompt; add a space or line break between"
        )
    return apart


TOO_LONG = "longer than max_length"


def _truncate(
    record: Record, tokens: list[int], prompt_length: int, tokenizer: Tokenizer, template: Template, config: DataConfig
) -> Rendered:
    """The example cut to the window as the configuration says.

    `keep_end` takes tokens from the beginning of the prompt, sparing a BOS and the assistant's header, and only
    then from the end of the completion, whose end-of-turn token goes with it: a cut answer did not end there.
    """
    window = config.max_length
    if config.truncation != "keep_end":
        raise BadRow("row", TOO_LONG, f"{len(tokens)} tokens for a window of {window}")
    bos = int(tokens[0] == tokenizer.bos_token_id and prompt_length > 1)
    header = max(1, _header_length(record, prompt_length, tokenizer, template))
    if bos + header >= window:
        raise BadRow("row", "max_length leaves no room for a completion after the assistant's header")
    completion = tokens[prompt_length:][: window - bos - header]
    prompt_end = tokens[bos:prompt_length][-(window - bos - len(completion)) :]
    cut = [*tokens[:bos], *prompt_end, *completion]
    complete = len(completion) == len(tokens) - prompt_length
    return Rendered(np.array(cut, np.int32), len(cut) - len(completion), template.ends_with_stop and complete, True)


def _header_length(record: Record, prompt_length: int, tokenizer: Tokenizer, template: Template) -> int:
    """Tokens of the assistant's header, which the prompt ends with; 0 where there is no chat template."""
    if template.text is None:
        return 0
    messages = prompt_messages(record.prompt)
    question = render_messages(messages, tokenizer, template)
    return max(0, prompt_length - len(encode([question], tokenizer)[0]))
