"""Files, folders and hub data sets -> rows, each with the place it stood in; lines of JSONL -> JSON objects."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple, cast

import xxhash

from rdro_jax.data.config import Source
from rdro_jax.data.records import BadRow, shorten
from rdro_jax.errors import RecordError
from rdro_jax.hub import HUB, data_folder

MAX_LINE_BYTES = 100 * 1024 * 1024
"""A longer line is damage, not data; reading it whole could exhaust memory."""

UTF8_BOM = b"\xef\xbb\xbf"
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
TABLE_MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow_file", b"\xff\xff\xff\xff": "arrow_stream"}

DATA_FILE = re.compile(r"\.(jsonl|json|ndjson|parquet|arrow|array_record)(\.gz|\.zst)?$")
NOT_DATA = re.compile(r"(dataset_infos?|state|config|.*_config|tokenizer|special_tokens_map|.*\.index)\.json$")
"""JSON that describes data, models and tokenizers."""
SHARD = re.compile(r"(?:^|.*[/_-])(\w+?)-\d{5}-of-\d{5}\.")
"""Files of a split as the hub and `datasets` write them: `train-00000-of-00002.parquet`."""


class Row(NamedTuple):
    """One row as it stood, not yet looked at."""

    path: str
    """The file."""
    number: int
    """Line of a text file, number of the row in other files; from 1."""
    value: bytes | dict[str, object]
    """A line of JSON, or the row itself."""


def read_rows(source: Source) -> Iterator[Row]:
    """The rows of a source, each as often as its weight says, at most `max_samples` of them read.

    Raises: RecordError for what is missing, unreadable, empty, damaged, or breaks off.
    """
    rows = (row for path in source_files(source) for row in read_file(path))
    whole = int(source.weight)
    for index, row in enumerate(islice(rows, source.max_samples)):
        drawn = xxhash.xxh3_64_intdigest(b"row %d" % index) < (source.weight - whole) * 2**64
        for _ in range(whole + drawn):
            yield row


def source_files(source: Source) -> list[str]:
    """The files of a source, in the order they are read. A hub data set is downloaded where it is not yet here.

    Raises: RecordError for a folder without data files, or with several splits of which none is named.
    """
    if source.path.startswith(HUB):
        return _folder_files(data_folder(source.path.removeprefix(HUB), source.revision), source)
    path = Path(source.path)
    return _folder_files(path, source) if path.is_dir() else [source.path]


def _folder_files(folder: Path, source: Source) -> list[str]:
    """Data files of a folder: what `save_to_disk` lists in its state, else all of them, of the split that is named."""
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        if source.split is None or source.split not in splits:
            raise RecordError(f"{source.path}: split {source.split!r}; wanted one of {', '.join(splits)}")
        folder = folder / source.split
    if (folder / "state.json").is_file():
        listed = json.loads((folder / "state.json").read_text())["_data_files"]
        return [str(folder / Path(part["filename"]).name) for part in listed]
    files = [file for file in folder.rglob("*") if DATA_FILE.search(file.name) and not NOT_DATA.match(file.name)]
    names = sorted(file.relative_to(folder).as_posix() for file in files)
    return [str(folder / name) for name in _of_split(names, source)]


def _of_split(files: list[str], source: Source) -> list[str]:
    """The files of the split a source names; all of them where they have no splits."""
    if source.split is not None:
        named = re.compile(rf"(^|[/_-]){re.escape(source.split)}([-_./]|$)")
        found = [name for name in files if named.search(name)]
        if not found:
            raise RecordError(f"{source.path}: no file of split {source.split!r} among {shorten(', '.join(files))}")
        return found
    splits = {shard[1] for name in files if (shard := SHARD.match(name))}
    if len(splits) > 1:
        raise RecordError(f"{source.path}: has splits {', '.join(sorted(splits))}; name one as the source's `split`")
    if not files:
        raise RecordError(f"{source.path}: a folder without data files; wanted JSONL, Parquet or Arrow in it")
    return files


def read_file(path: str) -> Iterator[Row]:
    """The rows of one file; what kind of file it is, its first bytes say.

    Raises: RecordError for a file that is missing, unreadable, empty, damaged, or breaks off.
    """
    kind = TABLE_MAGIC.get(_first_bytes(path, 4)) or TABLE_MAGIC.get(_first_bytes(path, 6))
    if kind or path.endswith(".array_record"):
        from rdro_jax.data import tables  # here, because it wants pyarrow

        values = tables.read_array_record(path) if kind is None else tables.read_table(path, kind)
    elif re.search(r"\.json(\.gz|\.zst)?$", path) and _first_letter(path) == b"[":
        values = enumerate(_read_array(path), start=1)
    else:
        values = read_lines(path)
    for number, value in values:
        yield Row(path, number, value)


def _first_bytes(path: str, count: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}; a file of rows is wanted here") from None


def _first_letter(path: str) -> bytes:
    return next((raw.lstrip()[:1] for _, raw in read_lines(path)), b"")


def _read_array(path: str) -> list[dict[str, object]]:
    """The rows of a JSON array, which are all in memory at once."""
    lines = [raw for _, raw in read_lines(path)]
    if max(map(len, lines)) > MAX_LINE_BYTES:
        raise RecordError(f"{path}: an array on lines over {MAX_LINE_BYTES >> 20} MiB; wanted JSONL, one row per line")
    try:
        rows = json.loads(b"".join(lines), parse_constant=_no_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        what = error.cause if isinstance(error, BadRow) else shorten(str(error), 120)
        raise RecordError(f"{path}: broken JSON ({what}); wanted an array of rows, or one row per line") from None
    return rows


def read_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Line number (from 1) and bytes of every line that is not blank; at most `MAX_LINE_BYTES + 1` bytes of each.

    Raises: RecordError for a file that is missing, unreadable, empty, or a packed file that breaks off.
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
        if error.strerror is None:  # pyarrow's word for a damaged stream
            what = "the zstd file breaks off or is damaged"
            raise RecordError(f"{path}:{number + 1}: {what} ({error}); fetch or write it again") from None
        raise RecordError(f"{path}: {error.strerror}; a JSONL file of rows is wanted here") from None
    if number == 0:
        raise RecordError(f"{path}: the file is empty; rows with `prompt`, `completion` and `label` are wanted")


def _open(path: str) -> IO[bytes]:
    """The file's bytes, unpacked where it begins like gzip or zstd (by content: names lie)."""
    with open(path, "rb") as file:
        magic = file.read(len(ZSTD_MAGIC))
    if magic == ZSTD_MAGIC:
        from rdro_jax.data.tables import pyarrow

        # pyarrow's reader, because the zstandard package takes a stream that breaks off for one that ends.
        stream = pyarrow().CompressedInputStream(pyarrow().OSFile(path), "zstd")
        return cast(IO[bytes], io.BufferedReader(stream))
    return cast(IO[bytes], gzip.open(path, "rb") if magic.startswith(GZIP_MAGIC) else open(path, "rb"))


def _skip_line(file: IO[bytes], raw: bytes) -> None:
    """Moves to the end of an over-long line, a piece at a time."""
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(1024 * 1024)


def parse_row(raw: bytes | dict[str, object]) -> dict[str, object]:
    """The JSON object in one line; a row that is no text stays as it is.

    Raises: BadRow for anything but one object of sound text.
    """
    if not isinstance(raw, bytes):
        return _checked(raw)
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
    return _checked(row)


def _checked(row: object) -> dict[str, object]:
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
