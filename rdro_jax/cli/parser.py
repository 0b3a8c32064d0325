"""What the parsers of all commands share: one-line errors, help that says the same things, types of arguments."""

import argparse
from typing import Any, NoReturn

from rdro_jax.errors import ConfigError

EXIT_CODES = """\
exit codes: 0 done, 2 configuration or usage, 3 data, 4 model or checkpoint unusable, 5 storage full or unwritable,
6 diverged, 42 state saved and restart wanted, 70 a bug of rdro. Codes 2 to 6 are never worth a plain restart."""


class Parser(argparse.ArgumentParser):
    """argparse whose usage errors are ConfigErrors: one line, the same exit code as every configuration fault."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of printing the usage and exiting."""
        raise ConfigError(f"command line: {message}; '{self.prog} --help' tells more")


def add_command(commands: Any, name: str, run: Any, summary: str, example: str, more: str = "") -> Parser:
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


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the config file and its overrides, as the commands take them that read a config."""
    parser.add_argument("config", metavar="CONFIG", help="YAML file, for example configs/rdro.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="keys to set: loss.alpha=0.3")


def positive(text: str) -> int:
    """A whole number from 1 up."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {number}; wanted 1 or more")
    return number


def temperature(text: str) -> float:
    """A finite number from 0 up."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text}; wanted 0 or more")
    return number


def share(text: str) -> float:
    """A number between 0 and 1, both excluded."""
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"got {text}; wanted a number between 0 and 1, both excluded")
    return number


def seed(text: str) -> int:
    """A whole number from 0 to below 2**32."""
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"got {text}; wanted a number from 0 to below 2**32")
    return number


def text(text: str) -> str:
    """Text that is UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:  # how Python keeps bytes of an argument that are not UTF-8
        raise argparse.ArgumentTypeError(f"got {text!a}; wanted UTF-8") from None
    return text
