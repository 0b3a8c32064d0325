"""The documents as a site: built without a warning, and with every public name in the API pages."""

import os
import re
import subprocess
import sys
from pathlib import Path

from public import public_names

import rdro_jax

ROOT = Path(__file__).parents[1]
API = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))


def build(site: Path) -> subprocess.CompletedProcess:
    """What `make docs` runs, into another folder."""
    words = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_site_builds_without_a_warning(tmp_path):
    done = build(tmp_path)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert "WARNING" not in told
    assert 'id="rdro_jax.losses.rdro.rdro"' in (tmp_path / "api" / "losses.html").read_text()
    assert (tmp_path / "launch.html").is_file()


def test_api_pages_show_all_public_names_and_no_others():
    shown = re.findall(r"^::: ([\w.]+)$", API, re.M)
    assert sorted(shown) == sorted(public_names())


def test_the_table_of_top_names_is_whole():
    table = re.findall(r"^\| \[`rj\.(\w+)`\]", API, re.M)
    assert sorted(table) == sorted(rdro_jax.__all__)
