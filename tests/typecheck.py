"""The run-time type checker of the tests: an int may stand where a float is asked for, as type checkers have it."""

from beartype import BeartypeConf, beartype

typecheck = beartype(conf=BeartypeConf(is_pep484_tower=True))
