"""The command line. Each command imports its room only when it runs: `rdro --help` must not wait for jax."""

from rdro_jax.cli.entry import main

__all__ = ["main"]
