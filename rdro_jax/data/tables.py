"""Parquet, Arrow and ArrayRecord files -> rows, a batch at a time."""

import importlib
from collections.abc import Iterator
from typing import Any

from rdro_jax.data.records import shorten
from rdro_jax.errors import ConfigError, RecordError

ROWS_AT_ONCE = 1024


def pyarrow(module: str = "pyarrow") -> Any:
    """The pyarrow package, or a module of it. Raises: ConfigError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            "data: Parquet, Arrow and zstd files need the package pyarrow; pip install 'rdro_jax[data]'"
        ) from None


def read_table(path: str, kind: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Number (from 1) and columns of every row; `kind` is parquet, arrow_file or arrow_stream.

    Raises: RecordError for a file that is damaged or has no rows.
    """
    number = 0
    arrow = pyarrow()
    try:
        for batch in _batches(path, kind):
            for row in batch.to_pylist():
                number += 1
                yield number, {name: _without_nulls(value) for name, value in row.items()}
    except (arrow.ArrowException, OSError) as error:
        what = shorten(str(error), 120)
        raise RecordError(
            f"{path}:{number + 1}: the {kind} file is damaged ({what}); fetch or write it again"
        ) from None
    if number == 0:
        raise RecordError(f"{path}: the file has no rows; rows with `prompt`, `completion` and `label` are wanted")


def _batches(path: str, kind: str) -> Iterator[Any]:
    """Record batches of at most `ROWS_AT_ONCE` rows."""
    if kind == "parquet":
        with pyarrow("pyarrow.parquet").ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=ROWS_AT_ONCE)
        return
    ipc = pyarrow("pyarrow.ipc")
    with pyarrow().memory_map(path) as file:
        if kind == "arrow_stream":
            batches = iter(ipc.open_stream(file))
        else:
            reader = ipc.open_file(file)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        for batch in batches:
            for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                yield batch.slice(start, ROWS_AT_ONCE)


def _without_nulls(value: Any) -> Any:
    """The value, objects in it without their empty keys: Arrow gives every message the keys that any message has."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def read_array_record(path: str) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of every record, each a JSON object.

    Raises: RecordError for a file that is damaged or has no records.
    """
    from grain.sources import ArrayRecordDataSource  # here, because it takes a second to import

    number = 0
    try:
        records: Any = ArrayRecordDataSource([path])
        for number in range(len(records)):
            yield number + 1, records[number]
    except (RuntimeError, ValueError, OSError) as error:
        what = shorten(str(error), 120)
        raise RecordError(f"{path}:{number + 1}: the ArrayRecord file is damaged ({what}); write it again") from None
    if len(records) == 0:
        raise RecordError(f"{path}: the file has no records; rows as JSON objects are wanted")
