"""Data sets of the hub, from a server that speaks as much of its language as downloading a data set takes."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rdro_jax.data import DataConfig, Source, load_examples
from rdro_jax.data import hub as hub_module
from rdro_jax.errors import RecordError

ROWS = [{"prompt": f"Question {i}?", "completion": f"Answer {i}.", "label": i % 3 == 0} for i in range(20)]
FIRST, SECOND = "1" * 40, "2" * 40


def lines(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


COMMITS = {
    FIRST: {"data/train-00000-of-00001.jsonl": lines(ROWS), "README.md": b"# words", "load.py": b"1 / 0"},
    SECOND: {"data/train-00000-of-00001.jsonl": lines(ROWS[:10]), "README.md": b"# words"},
}


class Hub(BaseHTTPRequestHandler):
    main, asked = FIRST, []

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if path == "/move":
            Hub.main = SECOND
            return self._send(b"")
        match path.removeprefix("/api").strip("/").split("/"):
            case ["datasets", "a", "set", "revision", revision]:
                sha = self.main if revision == "main" else revision
                self._send(json.dumps({"id": "a/set", "sha": sha, "siblings": []}).encode())
            case ["datasets", "a", "set", "tree", commit]:
                files = COMMITS[commit].items()
                listed = [{"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in files]
                self._send(json.dumps(listed).encode())
            case ["datasets", "a", "set", "resolve", commit, *rest]:
                self._send(COMMITS[commit]["/".join(rest)], commit)
            case _:
                self.send_error(404)

    do_HEAD = do_GET

    def _send(self, data, commit=""):
        self.send_response(200)
        for name, value in {"Content-Length": len(data), "ETag": f'"{hash(data):x}"', "X-Repo-Commit": commit}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    Hub.main = FIRST
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys, urllib.request
from rdro_jax.data import DataConfig, Source, prepare
folder, stores = sys.argv[1:3]
for store, revision, call in json.loads(sys.argv[3]):
    if call:
        urllib.request.urlopen(call)
    source, config = Source("hub:a/set", revision=revision), DataConfig(train="-", max_length=128, workers=1)
    try:
        report = prepare(source, folder, config, f"{stores}/{store}", tell=lambda line: print(store, line)).report
        print(store, report.sources[0].revision, report.kept)
    except Exception as error:
        print(store, type(error).__name__, error)
"""


def test_a_branch_is_kept_at_the_commit_it_was(hub, chatml, chatml_folder, write_rows, tmp_path):
    """From outside: a server, a cache, then no network; the branch moves, and what was prepared does not notice."""
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    settings["HF_HUB_OFFLINE"] = "0"

    def run(steps):
        command = [sys.executable, "-c", SCRIPT, str(chatml_folder), str(tmp_path), json.dumps(steps)]
        env = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | settings
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=env)
        said = [line.partition(" ") for line in done.stdout.splitlines()]
        return [[text for name, _, text in said if name == store] for store, *_ in steps]

    first, again, other = run([("one", None, None), ("two", FIRST, None), ("three", "main", f"{address}/move")])
    assert first[0].startswith(f"hub:a/set@main is commit {FIRST}; ")
    assert first[-1] == f"{FIRST} 20"
    assert "is commit" not in "".join(again)
    assert again[-1] == f"{FIRST} 20"
    assert other[0].startswith(f"hub:a/set@main is commit {SECOND}; ")
    assert other[-1] == f"{SECOND} 10"
    assert not any(path.endswith((".py", ".md")) for path in Hub.asked)
    hub.shutdown()
    settings["HF_HUB_OFFLINE"] = "1"
    first, offline, lacking = run([("one", None, None), ("four", FIRST, None), ("five", "v2", None)])
    assert "nothing to do" in first[0]
    assert first[-1] == offline[-1] == f"{FIRST} 20"
    assert lacking[-1].startswith("RecordError hub:a/set: cannot be downloaded at revision v2: ")
    [report] = (tmp_path / "one").glob("*/data_report.json")
    [source] = json.loads(report.read_text())["sources"]
    assert source["revision"] == FIRST
    wanted = load_examples(write_rows(ROWS), chatml, DataConfig(train="-", max_length=128)).report.tokens
    assert json.loads(report.read_text())["tokens"] == wanted


@pytest.mark.parametrize("bit", [3, 40, 200])
def test_damaged_commits_are_not_believed(bit, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_module, "data_folder", lambda name, revision: tmp_path / FIRST)
    source, told = Source("hub:a/set"), []
    assert hub_module.pin(source, tmp_path, told.append).revision == FIRST
    assert hub_module.pin(source, tmp_path, told.append).revision == FIRST
    assert len(told) == 1
    file = tmp_path / hub_module.COMMITS_FILE
    damaged = bytearray(file.read_bytes())
    damaged[bit // 8] ^= 1 << bit % 8
    file.write_bytes(damaged)
    with pytest.raises(RecordError, match=r"hub_commits.json: not as it was written"):
        hub_module.pin(source, tmp_path, told.append)
