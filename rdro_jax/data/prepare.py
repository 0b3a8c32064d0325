"""Rows -> an artefact on disk, tokenised by many processes, part by part; what is there already is not done again."""

import dataclasses
import fcntl
import json
import multiprocessing
import os
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from rdro_jax.data.chat import Template, Tokenizer, load_tokenizer, read_template, tokenizer_hash
from rdro_jax.data.config import DataConfig, Source, sources_of
from rdro_jax.data.examples import Examples, make_examples
from rdro_jax.data.hub import COMMITS_FILE, pin
from rdro_jax.data.loader import plan_epoch
from rdro_jax.data.pack import EMPTY
from rdro_jax.data.reading import Chunk, Side, check_tally, make_part, read_chunks
from rdro_jax.data.report import Layout, PackingReport, SourceReport, Tally
from rdro_jax.data.store import content_key, load_part, merge_parts, open_artefact, save_part, tally_to_json
from rdro_jax.errors import StorageError
from rdro_jax.hub import HUB, model_folder
from rdro_jax.run_files import seal, unseal, write_whole

REPORT_FILE = "data_report.json"
SECONDS_BETWEEN_LINES = 10.0
PACKED_ROWS_PER_BATCH = 32
"""Of the batches that the packing report speaks of; a run's own batches fill their rows all but as well."""

Tell = Callable[[str], None]


class TokenizerFiles(NamedTuple):
    """A model folder, and the hash of the files in it that decide the tokens."""

    folder: str
    digest: str


def prepare(
    path: str | Source | tuple[Source, ...],
    tokenizer: str | Path,
    config: DataConfig,
    folder: str | Path,
    *,
    require_label: bool = True,
    layout: Layout = "unpaired",
    side: Side = "all",
    tell: Tell = lambda line: None,
) -> Examples:
    """The examples of `load_examples`, memory-mapped from an artefact in `folder`, which is made where it is lacking.

    `tokenizer` is the model's folder. What was tokenised before a run was stopped is not tokenised again. Memory holds
    the parts being worked on, and some 100 bytes per example for the report.

    Raises: as `load_examples`; StorageError where the folder is full or unwritable, or an artefact is damaged.
    """
    sources = _pinned(sources_of(path), Path(folder), tell)
    how: dict[str, Any] = {"require_label": require_label, "layout": layout, "side": side}
    model = model_folder(tokenizer, weights=False)
    which = TokenizerFiles(str(model), tokenizer_hash(model))
    key = content_key(sources, which.digest, config, **how)
    home = Path(folder) / key
    if home.is_dir():
        tell(f"{home}: prepared before, nothing to do")
    else:
        with _storage_faults(Path(folder)), _lock(home):
            if not home.is_dir():  # another process may have made it while this one waited
                chunks = read_chunks(sources, config, **how)
                _build(
                    home,
                    chunks,
                    [SourceReport(source.path, revision=source.revision) for source in sources],
                    which,
                    config,
                    tell,
                )
    artefact = open_artefact(home)
    check_tally(artefact.tally, artefact.sources, config)
    examples = make_examples(artefact.arrays, artefact.tally, artefact.sources, layout, require_label=require_label)
    packing = _packing_report(home, examples, config)
    report = dataclasses.replace(examples.report, packing=packing, tokenizer=which.digest)
    write_whole(home / REPORT_FILE, report.to_json())
    return examples._replace(report=report)


def _pinned(sources: tuple[Source, ...], folder: Path, tell: Tell) -> tuple[Source, ...]:
    """The sources, those of the hub at the commit that this folder has been prepared from."""
    if not any(source.path.startswith(HUB) for source in sources):
        return sources
    with _storage_faults(folder), _lock(folder / COMMITS_FILE):
        return tuple(pin(source, folder, tell) for source in sources)


@contextmanager
def _storage_faults(folder: Path) -> Iterator[None]:
    """Faults of writing, as StorageError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise StorageError(
            f"{folder}: cannot be written ({reason}); free space, or set data.prepared to another folder"
        ) from error


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    """Alone with this artefact, among the processes of this machine and of those that share its disk."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(home.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(
    home: Path,
    chunks: Iterator[Chunk],
    reports: list[SourceReport],
    tokenizer: TokenizerFiles,
    config: DataConfig,
    tell: Tell,
) -> None:
    """Make the artefact: tokenise what is lacking, judge it, merge it, and only then give it its name."""
    staging = home.with_suffix(".unfinished")
    staging.mkdir(exist_ok=True)
    parts: list[Path] = []

    def jobs() -> Iterator[tuple[Chunk, Path]]:
        for number, chunk in enumerate(chunks):
            part = staging / f"part-{number:06d}.safetensors"
            parts.append(part)
            reports[chunk.source] = reports[chunk.source].add(len(chunk.rows), chunk.reading.form)
            yield chunk, part

    tally, spoken, start = Tally(), time.monotonic(), time.monotonic()
    for done in _tokenise_all(jobs(), tokenizer, config):
        tally.extend(done)
        if time.monotonic() - spoken > SECONDS_BETWEEN_LINES:
            spoken = time.monotonic()
            tell(f"{home.name}: {tally.rows} rows, {tally.rows / (spoken - start):.0f} rows/s")
    check_tally(tally, reports, config)
    sources = [dataclasses.asdict(report) for report in reports]
    merge_parts(parts, staging, {"tally": tally_to_json(tally), "sources": sources, "tokenizer": tokenizer.digest})
    for part in parts:
        part.unlink()
    staging.rename(home)
    tell(f"{home}: {tally.rows} rows prepared in {time.monotonic() - start:.1f} s")


def _tokenise_all(jobs: Iterator[tuple[Chunk, Path]], tokenizer: TokenizerFiles, config: DataConfig) -> Iterator[Tally]:
    """The tallies of all parts in order, each stored where its job says; by processes if there are several."""
    first = list(islice(jobs, 2))
    workers = config.workers or len(os.sched_getaffinity(0))
    if len(first) < 2 or workers == 1:
        yield from (_make_or_load(chunk, part, tokenizer) for chunk, part in chain(first, jobs))
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of threads it does not copy
    with _bare_main(), ProcessPoolExecutor(workers, context, _start_worker) as pool:
        waiting: deque[Future[Tally]] = deque()
        try:
            for chunk, part in chain(first, jobs):
                waiting.append(pool.submit(_make_or_load, chunk, part, tokenizer))
                if len(waiting) > 2 * workers:  # bounds the rows that are in memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _bare_main() -> Iterator[None]:
    """Workers started in here do not run the user's script again, as they otherwise would if it has no main guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker() -> None:
    """One thread per process: there is a process for every core."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _make_or_load(chunk: Chunk, part: Path, tokenizer: TokenizerFiles) -> Tally:
    """The tally of one part, which is made and stored unless it is there as it was written."""
    if part.exists() and (found := load_part(part)) is not None:
        return found.tally
    made = make_part(chunk, *_tools(tokenizer, chunk.reading.config.chat_template_kwargs))
    save_part(part, made)
    return made.tally


@cache
def _tools(tokenizer: TokenizerFiles, kwargs: tuple[tuple[str, Any], ...]) -> tuple[Tokenizer, Template]:
    """Tokenizer and template, read once in each process."""
    loaded = load_tokenizer(tokenizer.folder)
    return loaded, read_template(loaded, kwargs)


def _packing_report(home: Path, examples: Examples, config: DataConfig) -> PackingReport:
    """How full the rows of the first epoch are with this packing; planned once and kept beside the artefact."""
    file = home / f"packing-{config.slots}-{config.batching}.json"
    if file.is_file() and (found := unseal(file.read_bytes())) is not None:
        return PackingReport(**found)
    plan = plan_epoch(
        examples,
        epoch=0,
        global_batch_size=PACKED_ROWS_PER_BATCH,
        max_length=config.max_length,
        slots=config.slots,
        seed=0,
        batching=config.batching,
    )
    lengths = examples.lengths[plan[plan != EMPTY]]
    rows, used = int((plan[..., 0] != EMPTY).sum()), int(lengths.sum())
    report = PackingReport(
        rows=rows,
        examples_per_row=len(lengths) / rows,
        utilisation=used / (rows * config.max_length),
        padded_utilisation=used / (len(lengths) * config.max_length),
        lost_tokens=rows * config.max_length - used,
    )
    write_whole(file, json.dumps(seal(dataclasses.asdict(report))))
    return report
