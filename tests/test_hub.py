"""Models named by their place on the hub, from a small hub of our own on this machine."""

import http.server
import json
import threading
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny
from huggingface_hub import constants

from rdro_jax.config import load_config, pin_models
from rdro_jax.data import load_tokenizer
from rdro_jax.errors import WeightError
from rdro_jax.hub import model_folder, pin_model
from rdro_jax.models import load_model, save_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "hub:owner/name"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for one model, and breaks off the first time the weights are asked for."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path, self.headers.get("Range")))
        if path == "/api/models/owner/name/revision/main":
            return self._json({"id": "owner/name", "sha": COMMIT, "siblings": []})
        if path == f"/api/models/owner/name/tree/{COMMIT}":
            return self._json(
                [
                    {"type": "file", "path": name, "size": len(body), "oid": f"{index:040x}"}
                    for index, (name, body) in enumerate(self.server.files.items())
                ]
            )
        name = path.removeprefix(f"/owner/name/resolve/{COMMIT}/")
        if name not in self.server.files:
            return self.send_error(404)
        return self._file(name)

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, name):
        body, index = self.server.files[name], list(self.server.files).index(name)
        start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        headers = {"ETag": f'"{index:040x}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        cut = self.command == "GET" and name.endswith(".safetensors") and not self.server.broken
        self.server.broken |= cut
        self._send(206 if start else 200, body[start:], headers, keep=len(body) // 2 if cut else None)

    def _send(self, status, body, headers, keep=None):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "Connection": "close", **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:keep])

    def log_message(self, *_):
        """Not on the terminal."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_folder(tmp_path_factory.mktemp("tiny")) / "model"


@pytest.fixture
def hub(model, tmp_path, monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        files = {file.name: file.read_bytes() for file in sorted(model.iterdir()) if file.is_file()}
        server.files = files | {"modeling.py": b"raise SystemExit", "fp32/model.safetensors": b"other"}
        server.asked, server.broken = [], False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what has come is kept in such pieces
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server
        server.shutdown()


def gets(hub):
    return [path.rpartition("/")[2] for command, path, _ in hub.asked if command == "GET" and "/resolve/" in path]


def test_a_name_is_a_folder_with_its_commit(hub, model):
    """Downloaded once, taken up where the first attempt broke off, without code and without other formats."""
    params, config = load_model(NAME)
    wanted, _ = load_model(model)
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    weights = [span for command, path, span in hub.asked if command == "GET" and path.endswith("model.safetensors")]
    assert weights == [None, f"bytes={len(hub.files['model.safetensors']) // 2 // 1000 * 1000}-"]
    assert not {"modeling.py", "fp32"} & {part for _, path, _ in hub.asked for part in path.split("/")}
    assert pin_model(NAME) == f"{NAME}@{COMMIT}" == pin_model(f"{NAME}@{COMMIT}")
    before = len(hub.asked)
    assert model_folder(f"{NAME}@{COMMIT}").name == COMMIT
    assert len(hub.asked) == before, "what is pinned and here needs no network"
    save_model(params, config, model_folder(NAME).parents[3] / "saved", base=NAME)


def test_tokenizer_and_architecture_need_no_weights(hub, model):
    assert load_tokenizer(NAME).get_vocab() == load_tokenizer(model).get_vocab()
    assert "model.safetensors" not in gets(hub)


def test_a_run_remembers_the_commit(hub, model, tmp_path):
    sources = f"model: {{path: '{NAME}'}}, reference: {{path: {model}}}"
    (tmp_path / "run.yaml").write_text(f"{{{sources}, loss: {{name: rdro}}, data: {{train: x}}, output_dir: o}}")
    config = load_config(tmp_path / "run.yaml")
    pinned = pin_models(config)
    assert pinned.model == replace(config.model, path=f"{NAME}@{COMMIT}")
    assert pinned.reference == config.reference


def test_what_cannot_be_had_is_one_line(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(WeightError, match=r"hub:owner/none: cannot be downloaded at .* main: .*HF_TOKEN") as error:
        load_model("hub:owner/none")
    assert "\n" not in str(error.value)


def test_offline_is_the_cache_alone(hub, monkeypatch):
    load_model(NAME)
    asked = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert model_folder(NAME).name == COMMIT
    with pytest.raises(WeightError, match=r"hub:owner/other: cannot be downloaded"):
        model_folder("hub:owner/other")
    assert len(hub.asked) == asked
