"""Errors a user can cause, each with the exit code of the process that meets it.

One table for every launcher: 0 done, 2 configuration or usage, 3 data, 4 model or checkpoint unusable, 5 storage,
6 diverged, 42 state saved and restart wanted, 70 internal. Codes 2 to 6 are never worth a restart.
"""

from typing import ClassVar

EXIT_DONE = 0
EXIT_RESTART = 42
EXIT_INTERNAL = 70


class RdroError(Exception):
    """What a user can cause. The message is one line: where, what was got, what is wanted, what to do."""

    exit_code: ClassVar[int] = EXIT_INTERNAL


class ConfigError(RdroError):
    """A configuration key, value or command-line argument that cannot be used."""

    exit_code = 2


class RecordError(RdroError):
    """A row of data, or a whole data set, that cannot be trained on."""

    exit_code = 3


class WeightError(RdroError):
    """Model files or arrays that do not fit: missing, unknown, duplicate, mis-shaped or damaged."""

    exit_code = 4


class CheckpointError(RdroError):
    """A training checkpoint that cannot be restored, or that belongs to another run."""

    exit_code = 4


class StorageError(RdroError):
    """A folder that is full or unwritable, a store that cannot be reached."""

    exit_code = 5


class DivergedError(RdroError):
    """Training met non-finite numbers and stopped."""

    exit_code = 6


class EndedByFirst(Exception):
    """The first of several processes met a fault and tells it; this one ends with it, in silence."""

    def __init__(self, exit_code: int):
        super().__init__(f"ended with the first process, exit code {exit_code}")
        self.exit_code = exit_code


class RestartWanted(Exception):
    """The state is saved, and the same command again goes on: no fault of anybody's. The message is one line."""

    exit_code: ClassVar[int] = EXIT_RESTART
