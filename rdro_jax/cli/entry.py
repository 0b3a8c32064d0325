"""From the words of a command line to an exit code."""

import argparse
import errno
import os
import select
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from rdro_jax.cli.data import add_prepare, add_preview
from rdro_jax.cli.doctor import add_doctor
from rdro_jax.cli.evaluate import add_eval_alpaca, add_eval_judge, add_eval_lm, add_eval_mt_bench, join_kind
from rdro_jax.cli.generate import add_generate
from rdro_jax.cli.launch import add_launch
from rdro_jax.cli.look import add_report, add_status
from rdro_jax.cli.parser import EXIT_CODES, Parser
from rdro_jax.cli.plan import add_plan
from rdro_jax.cli.runs import add_eval, add_export, add_import_gguf, add_quickstart, add_study, add_train
from rdro_jax.cli.sweeps import add_sweep
from rdro_jax.errors import (
    EXIT_DONE,
    EXIT_INTERNAL,
    EXIT_RESTART,
    ConfigError,
    EndedByFirst,
    RdroError,
    RestartWanted,
    StorageError,
)

COMMANDS = (
    *(add_train, add_prepare, add_preview, add_eval, add_eval_lm, add_eval_alpaca, add_eval_mt_bench, add_eval_judge),
    *(add_generate, add_export, add_report, add_status),
    *(add_plan, add_sweep, add_launch, add_import_gguf, add_study, add_doctor, add_quickstart),
)
"""Each adds the parser of one command, in the order of the help."""
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells count it."""

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""What a system says of a full, read-only, forbidden or failing disk: any write anywhere can meet it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: a fault of the user's is one line on stderr, never a traceback.

    Where other processes take part in the run, one that ends by a fault ends at once (`parallel.leave`).
    """
    code = _run(argv)
    if "rdro_jax.parallel" not in sys.modules:
        return code
    from rdro_jax.parallel import leave

    return leave(code, agreed=code in (EXIT_DONE, EXIT_RESTART))


def _run(argv: Sequence[str] | None) -> int:
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
    except EndedByFirst as end:
        return end.exit_code
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            # `rdro generate ... | head`: the reader has enough. Python's own flush at exit must not complain again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_DONE
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            file = f"{error.filename}: " if error.filename else ""
            return _fail(
                f"{file}{error.strerror}; free space, or choose a folder that can be written", StorageError.exit_code
            )
        _end_where_a_peer_is_gone(error)
        traceback.print_exc()
        return _fail(f"this {type(error).__name__} is a bug of rdro; please report the lines above", EXIT_INTERNAL)


def _reader_is_gone() -> bool:
    """Whether nobody reads stdout; a broken pipe may be another one, to a store or a tracker."""
    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in stdout.poll(0))


def _end_where_a_peer_is_gone(error: Exception) -> None:
    """Ends this process, to be started again with the others, where one of them is gone; else returns."""
    if "rdro_jax.parallel" not in sys.modules:
        return
    from rdro_jax.parallel import is_loss_of_peer, leave

    if is_loss_of_peer(error):
        reason = " ".join(str(error).split())[:200]
        print(f"rdro: another process is gone ({reason}); start all of them again", file=sys.stderr)
        leave(EXIT_RESTART)


def _fail(message: str, code: int) -> int:
    # Bad rows come as a list, the line that sums them up last.
    *listed, summary = message.split("\n")
    print(*listed, f"rdro: error: {summary}", sep="\n", file=sys.stderr)
    return code


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments of one command. Raises: ConfigError."""
    parser, argv = make_parser(), join_kind(argv)
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
    for add in COMMANDS:
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
