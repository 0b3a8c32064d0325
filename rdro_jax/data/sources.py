"""Lines of a JSONL file, plain or gzip, and the JSON objects in them."""

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import IO

from rdro_jax.data.records import BadRow, shorten
from rdro_jax.errors import RecordError

MAX_LINE_BYTES = 100 * 1024 * 1024
"""A longer line is damage, not data; reading it whole could exhaust memory."""

GZIP_MAGIC = b"\x1f\x8b"
UTF8_BOM = b"\xef\xbb\xbf"


def read_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Line number (from 1) and bytes of every line that is not blank; at most `MAX_LINE_BYTES + 1` bytes of each.

    Raises: RecordError for a file that is missing, unreadable, empty, or a gzip file that breaks off.
    """
    number = 0
    try:
        with _open(path) as file:
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(raw) > MAX_LINE_BYTES:
                    _skip_line(file, raw)
                if number == 1:
                    raw = raw.removeprefix(UTF8_BOM)
                if raw.strip():
                    yield number, raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = "the gzip file breaks off or is damaged"
        raise RecordError(f"{path}:{number + 1}: {what} ({error}); fetch or write it again") from None
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}; a JSONL file of rows is wanted here") from None
    if number == 0:
        raise RecordError(f"{path}: the file is empty; rows with `prompt`, `completion` and `label` are wanted")


def _open(path: str) -> IO[bytes]:
    """The file's bytes, unpacked where it begins like gzip (by content: names lie)."""
    with open(path, "rb") as file:
        packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    return gzip.open(path, "rb") if packed else open(path, "rb")  # type: ignore[return-value]


def _skip_line(file: IO[bytes], raw: bytes) -> None:
    """Moves to the end of an over-long line, a piece at a time."""
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(1024 * 1024)


def parse_row(raw: bytes) -> dict[str, object]:
    """The JSON object in one line.

    Raises: BadRow for anything but one object of sound text.
    """
    if len(raw) > MAX_LINE_BYTES:
        raise BadRow("row", f"line longer than {MAX_LINE_BYTES >> 20} MiB")
    try:
        row = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as error:
        raise BadRow("row", "not valid UTF-8", f"byte 0x{raw[error.start]:02x} at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise BadRow("row", "broken JSON", f"{error.msg} at column {error.colno}") from None
    except RecursionError:
        raise BadRow("row", "broken JSON", "nesting without end") from None
    except BadRow:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise BadRow("row", "broken JSON", str(error).split(";")[0]) from None
    if not isinstance(row, dict):
        hint = " (a JSON array: write one object per line)" if isinstance(row, list) else ""
        raise BadRow("row", "not a JSON object", type(row).__name__ + hint)
    return row


def _no_constant(name: str) -> None:
    raise BadRow("row", "broken JSON", f"{name}, which is not a JSON number")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object, unless a key stands twice: JSON readers differ on which one they take."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise BadRow("row", "a key stands twice", shorten(next(key for key in keys if keys.count(key) > 1)))
    return row
