"""Data sets of the Hugging Face hub, kept at the commit they were first prepared from."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rdro_jax.data.config import Source
from rdro_jax.errors import RecordError
from rdro_jax.hub import HUB, data_folder
from rdro_jax.run_files import seal, unseal, write_whole

COMMIT = re.compile(r"[0-9a-f]{40}")
COMMITS_FILE = "hub_commits.json"


def pin(source: Source, folder: Path, tell: Callable[[str], None]) -> Source:
    """The source at a commit: the one that its branch or tag was when it was first prepared in this folder.

    A run that goes on next week finds the rows it began with, wherever the branch has moved. Sources that are not on
    the hub, or name a commit themselves, come back as they are.

    Raises: RecordError as `data_folder`, or where the file of the commits is damaged; OSError.
    """
    if not source.path.startswith(HUB) or COMMIT.fullmatch(source.revision or ""):
        return source
    file, name = folder / COMMITS_FILE, f"{source.path}@{source.revision or 'main'}"
    commits = unseal(file.read_bytes()) if file.is_file() else {}
    if commits is None:
        raise RecordError(f"{file}: not as it was written; name the commit as `revision` of {name}, or remove the file")
    if name not in commits:
        commits[name] = data_folder(source.path.removeprefix(HUB), source.revision).name
        write_whole(file, json.dumps(seal(commits), indent=2))
        tell(f"{name} is commit {commits[name]}; {file} keeps it so (`revision` of the source names it for good)")
    return replace(source, revision=commits[name])
