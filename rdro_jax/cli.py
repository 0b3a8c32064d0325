"""The command line. Each command imports its room only when it runs: `rdro --help` must not wait for jax."""

import argparse
import errno
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from rdro_jax.cli_data import add_prepare, add_preview
from rdro_jax.errors import (
    EXIT_DONE,
    EXIT_INTERNAL,
    ConfigError,
    RdroError,
    RecordError,
    RestartWanted,
    StorageError,
)

EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells count it."""

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""What a system says of a full, read-only, forbidden or failing disk: any write anywhere can meet it."""

EXIT_CODES = """\
exit codes: 0 done, 2 configuration or usage, 3 data, 4 model or checkpoint unusable, 5 storage full or unwritable,
6 diverged, 42 state saved and restart wanted, 70 a bug of rdro. Codes 2 to 6 are never worth a plain restart."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: a fault of the user's is one line on stderr, never a traceback."""
    try:
        arguments = parse(sys.argv[1:] if argv is None else list(argv))
        arguments.run(arguments)
        sys.stdout.flush()
        return EXIT_DONE
    except RdroError as error:
        return _fail(str(error), error.exit_code)
    except RestartWanted as stop:
        print(f"rdro: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # `rdro generate ... | head`: the reader has enough. Python's own flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except Exception as error:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            file = f"{error.filename}: " if error.filename else ""
            return _fail(
                f"{file}{error.strerror}; free space, or choose a folder that can be written", StorageError.exit_code
            )
        traceback.print_exc()
        return _fail(f"this {type(error).__name__} is a bug of rdro; please report the lines above", EXIT_INTERNAL)


def _fail(message: str, code: int) -> int:
    # Bad rows come as a list, the line that sums them up last.
    *listed, summary = message.split("\n")
    print(*listed, f"rdro: error: {summary}", sep="\n", file=sys.stderr)
    return code


class Parser(argparse.ArgumentParser):
    """argparse whose usage errors are ConfigErrors: one line, the same exit code as every configuration fault."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of printing the usage and exiting."""
        raise ConfigError(f"command line: {message}; '{self.prog} --help' tells more")


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments of one command. Raises: ConfigError."""
    parser = make_parser()
    _check_command(argv, parser.get_default("commands"))
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes all positionals at once: what follows an option, as in `train c.yaml --print-config a=1`, is left.
    if rest and (any(word.startswith("-") for word in rest) or "overrides" not in arguments):
        raise ConfigError(f"command line: unknown arguments: {' '.join(rest)}; 'rdro {argv[0]} --help' tells more")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _check_command(argv: list[str], known: tuple[str, ...]) -> None:
    """Raise ConfigError with the nearest command where the first word is none."""
    name = next((word for word in argv if not word.startswith("-")), None)
    if name is not None and name not in known:
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"wanted {', '.join(known)}"
        raise ConfigError(f"command line: unknown command '{name}'; {hint}")


def make_parser() -> Parser:
    """The parser of every command; `arguments.run` is the function that carries it out."""
    parser = Parser(
        prog="rdro",
        description="Align language models by relative density ratio optimisation (RDRO), from unpaired preferences.",
        epilog=f"first steps: rdro quickstart\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(run=_run_without_command(parser))
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for add in (
        _add_train,
        _add_data,
        _add_eval,
        _add_generate,
        _add_export,
        _add_import_gguf,
        _add_study,
        _add_quickstart,
    ):
        add(commands)
    parser.set_defaults(commands=tuple(commands.choices))
    return parser


def _run_without_command(parser: Parser) -> Any:
    def run(arguments: argparse.Namespace) -> None:
        if not arguments.version:
            raise ConfigError(f"command line: no command; '{parser.prog} --help' lists them")
        from importlib.metadata import version

        print(f"rdro_jax {version('rdro_jax')}")

    return run


def _command(commands: Any, name: str, run: Any, summary: str, example: str, more: str = "") -> Parser:
    """A subparser whose help says what the command does, in which words to call it, and what its exit codes mean."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.{more}",
        epilog=f"example: {example}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def _add_train(commands: Any) -> None:
    parser = _command(
        commands,
        "train",
        _train,
        "train the run a config describes, or go on with it if it was stopped",
        "rdro train configs/rdro.yaml model.path=models/base data.train=train.jsonl output_dir=runs/first",
        "\nThe run folder is output_dir; the same command again resumes from its last checkpoint.",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file, for example configs/rdro.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="keys to set: loss.alpha=0.3")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config as YAML and exit")


def _train(arguments: argparse.Namespace) -> None:
    from rdro_jax.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(config.to_yaml(), end="")
        return
    from rdro_jax.train import train

    train(config)


def _add_data(commands: Any) -> None:
    add_prepare(commands, _command)
    add_preview(commands, _command, _positive)


def _add_eval(commands: Any) -> None:
    parser = _command(
        commands,
        "eval",
        _eval,
        "measure a policy against its reference on labelled rows",
        "rdro eval runs/first --reference models/base --data held_out.jsonl",
        "\nPrints JSON: held-out RDRO loss, AUC of the log-ratio, share of ratios above 1/alpha, means by class.",
    )
    parser.add_argument("model", metavar="MODEL_OR_RUN", help="Hugging Face folder, or the folder of a run")
    parser.add_argument("--reference", metavar="DIR", required=True, help="Hugging Face folder of the reference")
    parser.add_argument("--data", metavar="FILE", required=True, help="JSONL rows of prompt, completion, label")
    parser.add_argument("--max-length", metavar="N", type=_positive, default=1024, help="tokens per row (default 1024)")
    parser.add_argument("--alpha", metavar="A", type=_share, help="share of desirable rows (default: that of the data)")


def _eval(arguments: argparse.Namespace) -> None:
    from rdro_jax.evaluate import evaluate

    metrics = evaluate(
        arguments.model,
        reference=arguments.reference,
        data=arguments.data,
        max_length=arguments.max_length,
        alpha=arguments.alpha,
    )
    print(json.dumps(metrics, indent=2))


def _add_generate(commands: Any) -> None:
    parser = _command(
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
        "--prompt", metavar="TEXT", type=_text, action="append", help="a message of the user's; repeat for more"
    )
    prompts.add_argument("--prompts", metavar="FILE", help="*.jsonl rows with a prompt field, or one prompt per line")
    prompts.add_argument("--chat", action="store_true", help="a conversation: lines are read from the terminal")
    parser.add_argument("--max-new-tokens", metavar="N", type=_positive, default=128, help="default %(default)s")
    parser.add_argument("--temperature", metavar="T", type=_temperature, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", metavar="N", type=_positive, help="draw from the N likeliest tokens only")
    parser.add_argument("--top-p", metavar="P", type=float, default=1.0, help="draw from the likeliest that hold P")
    parser.add_argument("--min-p", metavar="P", type=float, default=0.0, help="least probability, in the likeliest's")
    parser.add_argument("--repetition-penalty", metavar="X", type=float, default=1.0, help="above 1 repeats less")
    parser.add_argument("--n", metavar="N", type=_positive, default=1, help="answers per prompt (default 1)")
    parser.add_argument("--stop", metavar="TEXT", type=_text, action="append", default=[], help="end behind this text")
    parser.add_argument("--seed", metavar="N", type=_seed, default=0, help="seed of the sampling")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {number}; wanted 1 or more")
    return number


def _temperature(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text}; wanted 0 or more")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"got {text}; wanted a number between 0 and 1, both excluded")
    return number


def _seed(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"got {text}; wanted a number from 0 to below 2**32")
    return number


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # how Python keeps bytes of an argument that are not UTF-8
        raise argparse.ArgumentTypeError(f"got {text!a}; wanted UTF-8") from None
    return text


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


def _add_export(commands: Any) -> None:
    parser = _command(
        commands,
        "export",
        _export,
        "write the policy of a run as a Hugging Face folder",
        "rdro export runs/first models/first-aligned",
        "\nTakes the last checkpoint unless --step names another.",
    )
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="the run's output_dir")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must not exist")
    parser.add_argument("--step", metavar="N", type=int, help="optimizer step of the checkpoint to take")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="type of the weights (default: the run's)")
    parser.add_argument("--adapter", action="store_true", help="adapters alone, in the form of PEFT (model.lora runs)")


def _export(arguments: argparse.Namespace) -> None:
    from rdro_jax.export import export

    if arguments.out.exists():
        raise StorageError(f"{arguments.out}: already exists; name a new folder or remove this one")
    export(arguments.run_dir, arguments.out, step=arguments.step, dtype=arguments.dtype, adapter=arguments.adapter)
    print(arguments.out)


def _add_import_gguf(commands: Any) -> None:
    parser = _command(
        commands,
        "import-gguf",
        _import_gguf,
        "turn a GGUF file into a Hugging Face folder",
        "rdro import-gguf smollm2.gguf models/smollm2",
        "\nNeeds the package `gguf`: pip install 'rdro_jax[gguf]'. Quantised weights are dequantised, not restored.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="GGUF file of a Llama or Qwen model")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")


def _import_gguf(arguments: argparse.Namespace) -> None:
    from rdro_jax.models.gguf import import_gguf

    print(import_gguf(arguments.file, arguments.out))


def _add_study(commands: Any) -> None:
    parser = _command(
        commands,
        "study",
        _study,
        "measure losses where the truth is known, each figure beside the wanted one",
        "rdro study consistency --losses rdro,ddro,sft,dpo,kto",
        "\nNAME: consistency, sft_gap, stability, cyclic, alpha, batch, tree, numerics, alpha_hat, prompt_alpha,"
        "\nbatch_mean, or all of them in a few minutes. Each prints a table and writes NAME.json and NAME.png."
        "\nExit code 1: a figure was missed.",
    )
    parser.add_argument("name", metavar="NAME", help="the study, or all")
    parser.add_argument("--losses", metavar="A,B", type=_names, default=(), help="those to compare in consistency")
    parser.add_argument("--seeds", metavar="N", type=_positive, default=5, help="repetitions (default %(default)s)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/studies"), help="default: %(default)s")
    parser.add_argument("--fast", action="store_true", help="leave out what takes long; the figures stay the same")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _study(arguments: argparse.Namespace) -> None:
    from rdro_jax.study import Options, run

    run(arguments.name, arguments.out, Options(arguments.seeds, arguments.fast, arguments.losses))


def _add_quickstart(commands: Any) -> None:
    parser = _command(
        commands,
        "quickstart",
        _quickstart,
        "align a small pretrained model on rated movie reviews, start to finish",
        "rdro quickstart --out runs/quickstart",
        "\nDownloads about 100 MB once. Prints held-out figures and completions before and after.",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/quickstart"), help="default: %(default)s")


def _quickstart(arguments: argparse.Namespace) -> None:
    from rdro_jax.quickstart import run

    run(arguments.out)
