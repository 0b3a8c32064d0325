"""A model folder that answers: prompts as its chat template asks them, text out; in a batch, or in a conversation."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rdro_jax.data.chat import Template, encode, load_tokenizer, prompt_messages, read_template, render_messages
from rdro_jax.data.records import BadRow
from rdro_jax.errors import RecordError
from rdro_jax.generate.load import load_spread
from rdro_jax.generate.sample import BUCKET, Sampled, Sampling, sample
from rdro_jax.models import ModelConfig, Params

ROWS = 16
"""Answers written side by side: a file of prompts may have any length, the key-value cache may not."""


class Assistant(NamedTuple):
    """A model and how it is spoken to."""

    params: Params
    config: ModelConfig
    tokenizer: Any
    template: Template


def load_assistant(directory: str | Path) -> Assistant:
    """The model of a folder on all devices and its tokenizer, which comes first, for it fails at once.

    Raises: WeightError.
    """
    tokenizer = load_tokenizer(directory)
    template = read_template(tokenizer)
    params, config, _ = load_spread(directory)
    return Assistant(params, config, tokenizer, template)


def answer(
    assistant: Assistant,
    prompts: Sequence[Any],
    sampling: Sampling,
    *,
    stop_strings: Sequence[str] = (),
    seed: int = 0,
) -> list[str]:
    """The text of `n` answers to each prompt, which is a text or a list of messages; `ROWS` or `n` of them at a time.

    Raises:
        RecordError: the chat template refuses a prompt.
        ConfigError: sampling options are out of range.
    """

    def decode(tokens: list[int]) -> str:
        return assistant.tokenizer.decode(tokens, skip_special_tokens=True)

    tokens, count = tokenise_prompts(assistant, prompts), max(1, ROWS // sampling.n)
    done: list[Sampled] = []
    for start in range(0, len(tokens), count):
        done += sample(
            assistant.params,
            assistant.config,
            tokens[start : start + count],
            sampling,
            stop_ids=assistant.config.eos_token_ids,
            stop_strings=stop_strings,
            decode=decode,
            key=jax.random.fold_in(jax.random.key(seed), start),
            logps=False,
            bucket=BUCKET,
        )
    return [decode(completion.tokens) for completion in done]


def tokenise_prompts(assistant: Assistant, prompts: Sequence[Any]) -> list[list[int]]:
    """Token ids of each prompt as the model is asked it: by its chat template, or as plain text if it has none."""
    template, texts = assistant.template, []
    for number, prompt in enumerate(prompts, start=1):
        try:
            if template.text is not None:
                messages = prompt_messages(prompt)
                prompt = render_messages(messages, assistant.tokenizer, template, add_generation_prompt=True)
            texts.append(prompt)
        except BadRow as fault:
            raise RecordError(f"prompt {number}: {fault.message}") from fault
    return [[*template.prefix, *tokens] for tokens in encode(texts, assistant.tokenizer)]


def converse(
    assistant: Assistant,
    lines: Iterator[str],
    say: Callable[[str], None],
    sampling: Sampling,
    *,
    stop_strings: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Answer each line in the light of those before it; `/new` forgets them, the end of the lines ends it.

    A model without a chat template is given each line by itself.
    """
    messages: list[dict[str, Any]] = []
    for turn, line in enumerate(lines):
        if line.strip() == "/new":
            messages = []
            continue
        messages = [*messages, {"role": "user", "content": line}]
        prompt = messages if assistant.template.text is not None else line
        options = {"stop_strings": stop_strings, "seed": seed + turn}
        [text] = answer(assistant, [prompt], sampling, **options)
        say(text)
        messages = [*messages, {"role": "assistant", "content": text}]
