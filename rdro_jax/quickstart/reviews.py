"""Rated movie-review sentences -> unpaired preference rows: prompt, completion, label."""

import html
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rdro_jax.errors import RecordError

PROMPT = [
    # A system message of our own: without one the chat template inserts a long default, and every token costs time.
    {"role": "system", "content": "You review movies."},
    {"role": "user", "content": "Write a sentence."},
]


class Review(NamedTuple):
    """A sentence, and how people rated it."""

    sentence: str
    rating: float
    """Mean of 15 to 20 people, from -4 (most negative) to 4 (most positive)."""


class Split(NamedTuple):
    """The files of training and held-out rows."""

    train: Path
    heldout: Path


def write_rows(file: Path, folder: Path, *, n_train: int, n_heldout: int, seed: int) -> Split:
    """Two JSONL files of rows that share no sentence; label = the mean rating is positive.

    Drawn at random without regard to the label, so the share of positive rows estimates that of the population:
    the `alpha` under which all rows together are a sample of the mixture.
    """
    reviews = read_reviews(file)
    if len(reviews) < n_train + n_heldout:
        raise RecordError(f"{file}: {len(reviews)} usable sentences, wanted {n_train + n_heldout}; ask for fewer")
    random.Random(seed).shuffle(reviews)
    # The held-out rows come first in the order: another n_train leaves them alone.
    heldout, train = reviews[:n_heldout], reviews[n_heldout : n_heldout + n_train]
    folder.mkdir(parents=True, exist_ok=True)
    return Split(write_jsonl(folder / "train.jsonl", train), write_jsonl(folder / "heldout.jsonl", heldout))


def read_reviews(file: Path, *, least: float = 0.5) -> list[Review]:
    """The distinct sentences whose mean rating is at least `least` away from neutral, cleaned, in file order."""
    lines = file.read_text(encoding="utf-8").splitlines()
    reviews = (parse(line, f"{file}:{number}") for number, line in enumerate(lines, start=1))
    distinct: dict[str, Review] = {}
    for review in reviews:
        if abs(review.rating) >= least:
            distinct.setdefault(review.sentence.casefold(), review)
    return list(distinct.values())


def parse(line: str, where: str) -> Review:
    """A line `id <tab> mean rating <tab> sentence`."""
    fields = line.split("\t")
    try:
        _, rating, sentence = fields
        return Review(clean(sentence), float(rating))
    except ValueError:
        raise RecordError(f"{where}: wanted id, rating and sentence between tabs, got {line[:60]!r}") from None


def clean(sentence: str) -> str:
    """The sentence as its writer typed it, as far as the file allows.

    The file's makers put a blank for every hyphen: two to four blanks in a row were a dash, which comes back as ` - `
    (single hyphens inside words are lost). Doubled apostrophes were quotation marks; `&amp;` is the only HTML escape.
    """
    return re.sub(r" {2,}", " - ", html.unescape(sentence).strip().replace("''", '"'))


def write_jsonl(path: Path, reviews: Sequence[Review]) -> Path:
    """Write one row per review, as `rdro train` reads them, and return the path."""
    rows = ({"prompt": PROMPT, "completion": r.sentence, "label": r.rating > 0} for r in reviews)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
