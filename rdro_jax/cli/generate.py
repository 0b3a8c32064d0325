"""`rdro generate`: prompts from arguments, a file or the terminal, and their answers."""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from rdro_jax.cli.parser import add_command, positive, seed, temperature, text
from rdro_jax.errors import RecordError


def add_generate(commands: Any) -> None:
    """Add `rdro generate`."""
    parser = add_command(
        commands,
        "generate",
        _generate,
        "answer prompts with a model",
        "rdro generate models/base --prompt 'Write one sentence of a movie review.' --temperature 0.7",
        "\nOne --prompt prints its answer; several, or a file, print one JSON object per line. --chat answers what is"
        "\ntyped, in the light of what was said before; /new forgets it.",
    )
    parser.add_argument("model", metavar="MODEL", help="Hugging Face folder")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument(
        "--prompt", metavar="TEXT", type=text, action="append", help="a message of the user's; repeat for more"
    )
    prompts.add_argument("--prompts", metavar="FILE", help="*.jsonl rows with a prompt field, or one prompt per line")
    prompts.add_argument("--chat", action="store_true", help="a conversation: lines are read from the terminal")
    parser.add_argument("--max-new-tokens", metavar="N", type=positive, default=128, help="default %(default)s")
    parser.add_argument("--temperature", metavar="T", type=temperature, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", metavar="N", type=positive, help="draw from the N likeliest tokens only")
    parser.add_argument("--top-p", metavar="P", type=float, default=1.0, help="draw from the likeliest that hold P")
    parser.add_argument("--min-p", metavar="P", type=float, default=0.0, help="least probability, in the likeliest's")
    parser.add_argument("--repetition-penalty", metavar="X", type=float, default=1.0, help="above 1 repeats less")
    parser.add_argument("--n", metavar="N", type=positive, default=1, help="answers per prompt (default 1)")
    parser.add_argument("--stop", metavar="TEXT", type=text, action="append", default=[], help="end behind this text")
    parser.add_argument("--seed", metavar="N", type=seed, default=0, help="seed of the sampling")


def _generate(arguments: argparse.Namespace) -> None:
    prompts = [] if arguments.chat else arguments.prompt or list(read_prompts(arguments.prompts))
    from rdro_jax.generate import Sampling
    from rdro_jax.generate.chat import answer, converse, load_assistant

    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "n")
    sampling = Sampling(**{name: getattr(arguments, name) for name in names})
    sampling.check()
    options = {"stop_strings": arguments.stop, "seed": arguments.seed}
    assistant = load_assistant(arguments.model)
    if arguments.chat:
        converse(assistant, _typed_lines(), print, sampling, **options)
        return
    answers = answer(assistant, prompts, sampling, **options)
    if arguments.prompt and len(answers) == 1:
        print(answers[0])
    else:
        _print_rows([prompt for prompt in prompts for _ in range(sampling.n)], answers)


def _typed_lines() -> Iterator[str]:
    """Lines as the user types them, until the end of the input."""
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return


def read_prompts(path: str) -> Iterator[Any]:
    """Prompts of a file: the prompt field of JSONL rows by the file's name, else its lines. Raises: RecordError."""
    from rdro_jax.data.formats import prompt_of
    from rdro_jax.data.records import BadRow
    from rdro_jax.data.sources import parse_row, read_lines

    as_rows = path.removesuffix(".gz").endswith(".jsonl")
    number = 0
    for number, line in read_lines(path):
        try:
            yield prompt_of(parse_row(line) if as_rows else {"prompt": line.decode().strip()})
        except BadRow as fault:
            raise RecordError(f"{path}:{number}: {fault.message}") from fault
        except UnicodeDecodeError as error:
            raise RecordError(f"{path}:{number}: not valid UTF-8 at byte {error.start + 1}") from error
    if number == 0:
        raise RecordError(f"{path}: holds no prompt, only blank lines")


def _print_rows(prompts: list[Any], completions: list[str]) -> None:
    """One JSON object per line, so that a program can read what belongs to what."""
    for prompt, completion in zip(prompts, completions, strict=True):
        print(json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False))
