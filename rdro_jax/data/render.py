"""Records -> examples: tokens with a known end of the prompt, cut to the window where the configuration says so."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int32

from rdro_jax.data.chat import Template, Tokenizer, encode, prompt_messages, render_messages, render_text
from rdro_jax.data.config import DataConfig
from rdro_jax.data.formats import SAME_AS_CHOSEN
from rdro_jax.data.records import BadRow, Record

TOO_LONG = "longer than max_length"
PROMPT_TOO_LONG, COMPLETION_TOO_LONG = (
    "prompt longer than max_prompt_length",
    "completion longer than max_completion_length",
)
LENGTH_REASONS = (TOO_LONG, PROMPT_TOO_LONG, COMPLETION_TOO_LONG)
"""Why `truncation: drop` leaves rows out on purpose."""

Value = TypeVar("Value")


class Rendered(NamedTuple):
    """One example as tokens."""

    tokens: Int32[np.ndarray, "tokens"]
    prompt_length: int
    """Tokens before the completion."""
    ends_with_stop: bool
    """True where the last token is the end of the turn."""
    truncated: bool
    """True where something was cut."""


def render(record: Record, tokenizer: Tokenizer, template: Template, config: DataConfig) -> Rendered:
    """One record as tokens; see `render_rows`.

    Raises: BadRow.
    """
    [rendered] = render_rows([(record,)], tokenizer, template, config)
    if isinstance(rendered, BadRow):
        raise rendered
    return rendered[0]


def render_rows(
    rows: Sequence[tuple[Record, ...]],
    tokenizer: Tokenizer,
    template: Template,
    config: DataConfig,
    *,
    together: bool = False,
) -> list[tuple[Rendered, ...] | BadRow]:
    """Examples of each row's one or two records, or what is wrong with the row. Tokenises all of them in one call.

    `together` fits the two records of a pair into one window of `max_length` tokens, after the same prompt; else each
    has a window of its own. A pair of which one half cannot be used is refused whole.
    """
    wholes = iter(_tokenise([record for row in rows for record in row], tokenizer, template))
    return [_attempt(_fit_row, row, [next(wholes) for _ in row], tokenizer, template, config, together) for row in rows]


def _attempt(function: Callable[..., Value], *args: object) -> Value | BadRow:
    """The function's value, or the BadRow it raised."""
    try:
        return function(*args)
    except BadRow as fault:
        return fault


def _tokenise(records: Sequence[Record], tokenizer: Tokenizer, template: Template) -> Iterator[Rendered | BadRow]:
    """The whole of each record as tokens, or what is wrong with it, in order.

    A full text's tokens must begin with the prompt's own tokens, because those are what the model is given when it
    answers. Where a merge runs across the border (a completion that begins with a line break), prompt and
    completion are tokenised apart, provided that reads back as the same text.
    """
    texts = [_attempt(render_text, record, tokenizer, template) for record in records]
    pieces = [_pieces(*text, template) for text in texts if not isinstance(text, BadRow)]
    # Prompts repeat, headers nearly always: each text is tokenised once.
    distinct = list(dict.fromkeys(piece for three in pieces for piece in three))
    ids = dict(zip(distinct, encode(distinct, tokenizer), strict=True))
    encoded = iter([ids[piece] for piece in three] for three in pieces)
    for record, text in zip(records, texts, strict=True):
        yield (
            text if isinstance(text, BadRow) else _attempt(_assemble, record, text, *next(encoded), tokenizer, template)
        )


def _pieces(prompt: str, full: str, template: Template) -> tuple[str, str, str]:
    """What comes before the header, the header, and the header with what comes after it; all one if there is none."""
    cut = len(prompt) - len(template.header) if template.header and prompt.endswith(template.header) else 0
    return full[:cut], prompt[cut:], full[cut:]


def _assemble(
    record: Record,
    texts: tuple[str, str],
    before: list[int],
    header: list[int],
    rest: list[int],
    tokenizer: Tokenizer,
    template: Template,
) -> Rendered:
    """Ids of the `_pieces` -> the whole example."""
    prompt, full = [*before, *header], [*before, *rest]
    if rest[: len(header)] != header:
        full = _tokenise_apart(record, texts, prompt, full, tokenizer)
    tokens = [*template.prefix, *full, *template.suffix]
    prompt_length = len(template.prefix) + len(prompt)
    bos = tokenizer.bos_token_id
    if bos is not None and tokens[:2] == [bos, bos]:
        raise BadRow("prompt", "begins with two BOS tokens; take one out of the chat template")
    if prompt_length == 0:
        raise BadRow("prompt", "becomes no tokens, so nothing predicts the first token of the completion")
    if len(full) == len(prompt):
        raise BadRow(record.column, "becomes no tokens")
    return Rendered(np.array(tokens, np.int32), prompt_length, template.ends_with_stop, False)


def _tokenise_apart(
    record: Record, texts: tuple[str, str], prompt: list[int], full: list[int], tokenizer: Tokenizer
) -> list[int]:
    """Prompt ids and then the completion's own ids, if they read back as the same text."""
    apart = [*prompt, *encode([texts[1][len(texts[0]) :]], tokenizer)[0]]
    if tokenizer.decode(apart) != tokenizer.decode(full):
        raise BadRow(
            record.column, "its first token merges with the end of the prompt; add a space or line break between"
        )
    return apart


def _fit_row(
    records: tuple[Record, ...],
    wholes: list[Rendered | BadRow],
    tokenizer: Tokenizer,
    template: Template,
    config: DataConfig,
    together: bool,
) -> tuple[Rendered, ...]:
    """The examples of one row, cut to their windows."""
    halves: list[Rendered] = []
    for whole in wholes:
        if isinstance(whole, BadRow):
            raise whole
        halves.append(whole)
    groups = [halves] if together else [[half] for half in halves]
    fitted = [part for group in groups for part in _fit(records[0], group, tokenizer, template, config)]
    if len(fitted) == 2 and np.array_equal(fitted[0].tokens, fitted[1].tokens):
        raise BadRow("rejected", SAME_AS_CHOSEN, "what max_length leaves of it" if fitted[0].truncated else "")
    return tuple(fitted)


def _fit(
    record: Record, wholes: list[Rendered], tokenizer: Tokenizer, template: Template, config: DataConfig
) -> list[Rendered]:
    """Examples that share one window and one prompt, cut as the configuration says.

    The prompt loses its beginning or its end, sparing a BOS and the assistant's header; only where that is not enough
    does the completion lose its end, and its end-of-turn token with it: a cut answer did not end there.
    """
    most_prompt = config.max_prompt_length or config.max_length
    most_completion = config.max_completion_length or config.max_length
    prompt_length = wholes[0].prompt_length
    excess = _excess(wholes, config.max_length, most_prompt, most_completion)
    if excess is None:
        return wholes
    if config.truncation in ("drop", "error"):
        raise excess
    bos = int(wholes[0].tokens[0] == tokenizer.bos_token_id and prompt_length > 1)
    header = _header_length(record, prompt_length, tokenizer, template)
    spared = bos + max(1, header)
    # What is left when each part has its own limit; then an equal share of the window, and what the others leave of it.
    kept = min(prompt_length, most_prompt)
    lengths = [kept + min(len(whole.tokens) - prompt_length, most_completion) for whole in wholes]
    windows = [max(config.max_length // len(wholes), config.max_length - sum(lengths) + own) for own in lengths]
    if spared >= min(windows) or spared > kept:
        limit = "max_length" if spared >= min(windows) else "max_prompt_length"
        raise BadRow("row", f"{limit} leaves no room for a prompt and a completion beside the assistant's header")
    # The half with the longest completion decides how much of the prompt both keep.
    longest = max(0, *(own - window for own, window in zip(lengths, windows, strict=True)))
    kept = max(spared, kept - longest)
    head = bos if config.truncation == "keep_end" else kept - header
    return [
        _cut(whole, head, kept - head, min(window - kept, most_completion))
        for whole, window in zip(wholes, windows, strict=True)
    ]


def _excess(wholes: list[Rendered], most: int, most_prompt: int, most_completion: int) -> BadRow | None:
    """What is too long, as a reason to leave the row out; None where nothing is."""
    prompt_length = wholes[0].prompt_length
    total = sum(len(whole.tokens) for whole in wholes)
    completion = max(len(whole.tokens) - prompt_length for whole in wholes)
    if total > most:
        return BadRow("row", TOO_LONG, f"{total} tokens for a window of {most}")
    if prompt_length > most_prompt:
        return BadRow("row", PROMPT_TOO_LONG, f"{prompt_length} tokens for {most_prompt}")
    if completion > most_completion:
        return BadRow("row", COMPLETION_TOO_LONG, f"{completion} tokens for {most_completion}")
    return None


def _cut(whole: Rendered, head: int, tail: int, most_completion: int) -> Rendered:
    """The example with `head` tokens from the beginning of its prompt and `tail` from its end, its completion cut."""
    prompt, completion = whole.tokens[: whole.prompt_length], whole.tokens[whole.prompt_length :]
    cut = completion[:most_completion]
    tokens = np.concatenate([prompt[:head], prompt[len(prompt) - tail :], cut])
    complete = len(cut) == len(completion)
    return Rendered(tokens, head + tail, whole.ends_with_stop and complete, len(tokens) < len(whole.tokens))


def _header_length(record: Record, prompt_length: int, tokenizer: Tokenizer, template: Template) -> int:
    """Tokens of the assistant's header, which the prompt ends with; 0 where there is no chat template."""
    if template.text is None:
        return 0
    messages = prompt_messages(record.prompt)
    question = render_messages(messages, tokenizer, template, record.variables)
    return max(0, prompt_length - len(encode([question], tokenizer)[0]))
