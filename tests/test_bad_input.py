"""Bad input through the whole command line: one line that names the fault, its exit code, and nothing lost.

The cases run in this process and, unless they are about weights, before any weight is read.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import write_folder

from rdro_jax import cli
from rdro_jax.models import hf

RUN = """\
output_dir: {home}/run
global_batch_size: 8
model: {{path: {home}/model}}
data: {{train: {home}/train.jsonl, eval: {home}/eval.jsonl, max_length: 32, slots: 4}}
loss: {{name: rdro}}
"""
WEIGHTS = "model/model.safetensors"
GOOD = {"prompt": "a", "completion": "b good", "label": True}
BAD = {"prompt": "a", "completion": "b bad", "label": False}


class Case(NamedTuple):
    """One fault: the command, what is wrong with the files, the exit code and what the last line must say."""

    words: str
    code: int
    says: str
    damage: Callable[[Path], object] = lambda home: None


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda home: (home / name).write_bytes(raw)


def rows(*lines: dict | str, name: str = "train.jsonl") -> Callable[[Path], object]:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return write(name, "".join(line + "\n" for line in text))


def remove(name: str) -> Callable[[Path], object]:
    return lambda home: (home / name).unlink()


def truncate(name: str) -> Callable[[Path], object]:
    return lambda home: (home / name).write_bytes((home / name).read_bytes()[:-100])


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], object]:
    """Rewrites the weights after `change` has had its way with them."""

    def damage(home: Path) -> None:
        arrays = load_file(home / WEIGHTS)
        change(arrays)
        save_file(arrays, home / WEIGHTS)

    return damage


def model_json(**changes: object) -> Callable[[Path], object]:
    def damage(home: Path) -> None:
        file = home / "model" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


def smaller_vocabulary(home: Path) -> None:
    model_json(vocab_size=20)(home)
    tensors(lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:20]}))(home)


def other_vocabulary(home: Path) -> None:
    """A second model whose tokens 5 and 6 mean each other's words."""
    shutil.copytree(home / "model", home / "other")
    file = home / "other" / "tokenizer.json"
    raw = json.loads(file.read_text())
    vocab = raw["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    file.write_text(json.dumps(raw))


TRAIN = "train {home}/run.yaml "
EVAL = "eval {home}/model --reference {home}/model --data {home}/eval.jsonl "
GENERATE = "generate {home}/model --max-new-tokens 1 "

CONFIG_FAULTS = {
    "no config": Case("train {home}/rnu.yaml", 2, "rnu.yaml: cannot be read: No such file.*did you mean '.*run.yaml'"),
    "config is a folder": Case("train {home}/model", 2, "model: cannot be read: Is a directory"),
    "config is empty": Case(TRAIN, 2, "run.yaml: empty", write("run.yaml", "")),
    "config is not YAML": Case(TRAIN, 2, "run.yaml:1: not YAML", write("run.yaml", "loss: {name: rdro")),
    "config is not UTF-8": Case(TRAIN, 2, "run.yaml: not UTF-8 text", write("run.yaml", b"output_dir: caf\xe9")),
    "unknown key": Case(TRAIN + "optimizer.learning_rte=1", 2, r"optimizer.learning_rte: unknown.*'learning_rate'\?"),
    "wrong type": Case(TRAIN + "global_batch_size=eight", 2, 'global_batch_size: got "eight"; wanted'),
    "unknown loss": Case(TRAIN + "loss.name=rdor", 2, "loss.name: got 'rdor'; wanted 'rdro'"),
    "alpha 0": Case(TRAIN + "loss.alpha=0", 2, "loss.alpha: got 0.*between 0 and 1"),
    "alpha 1": Case(TRAIN + "loss.alpha=1.0", 2, "loss.alpha: got 1.0.*between 0 and 1"),
    "beta 0": Case(TRAIN + "loss.name=apo_zero_unpaired loss.beta=0", 2, "loss.beta: got 0.*above 0"),
    "beta below 0": Case(TRAIN + "loss.name=apo_zero_unpaired loss.beta=-1.0", 2, "loss.beta: got -1.0.*above 0"),
    "tiny max_length": Case(TRAIN + "data.max_length=4", 2, "data.max_length: got 4; wanted"),
    "run over its model": Case(TRAIN + "output_dir={home}/model", 2, "output_dir: got the folder of model.path"),
    "mesh of 3": Case(TRAIN + "mesh.fsdp=3", 2, "mesh: got data=1, fsdp=3, context=1, tensor=1 for 8 devices; wanted"),
    "rows over the mesh": Case(
        TRAIN + "global_batch_size=3", 2, "global_batch_size: got 3 rows; wanted a multiple of 8"
    ),
    "heads over the mesh": Case(TRAIN + "mesh.tensor=8 mesh.fsdp=1", 2, "mesh.tensor: got 8 for 4 heads"),
    "eval alpha 2": Case(EVAL + "--alpha 2", 2, "--alpha: got 2; wanted a number between 0 and 1"),
    "eval max_length 0": Case(EVAL + "--max-length 0", 2, "argument --max-length: got 0; wanted 1 or more"),
    "max_length is no number": Case(EVAL + "--max-length x", 2, "--max-length: .*'x'"),
    "seed below 0": Case(GENERATE + "--prompt a --seed -1", 2, "--seed: got -1; wanted a number from 0"),
    "prompt is not UTF-8": Case(GENERATE + "--prompt \udcff", 2, r"--prompt: got '\\udcff'; wanted UTF-8"),
    "unknown study": Case("study nonsense", 2, "study: got 'nonsense'; wanted all or one of"),
}

DATA_FAULTS = {
    "no data": Case(TRAIN + "data.train={home}/no.jsonl", 3, "data.train: no file '.*no.jsonl'"),
    "no held-out data": Case(TRAIN + "data.eval={home}/no.jsonl", 3, "data.eval: no file '.*no.jsonl'"),
    "data is a folder": Case(TRAIN + "data.train={home}/model", 3, "model: a folder without data files; wanted JSONL"),
    "data is empty": Case(TRAIN, 3, "train.jsonl: the file is empty", write("train.jsonl", "")),
    "broken JSON": Case(TRAIN, 3, "1 of 3 rows.*broken JSON.*skip", rows(GOOD, '{"prompt": ', BAD)),
    "not UTF-8": Case(TRAIN, 3, "1 of 1 rows.*not valid UTF-8", write("train.jsonl", b'{"prompt": "\xe9"}\n')),
    "no label": Case(TRAIN, 3, "label: missing", rows(GOOD, BAD, {"prompt": "a", "completion": "b"})),
    "wrong label": Case(TRAIN, 3, "label: must be a boolean", rows(GOOD, BAD, GOOD | {"label": "maybe"})),
    "blank completion": Case(TRAIN, 3, "completion: is blank", rows(GOOD, BAD, GOOD | {"completion": " "})),
    "one class": Case(TRAIN, 3, "label: true in all 2 rows; rows of both classes", rows(GOOD, GOOD)),
    "held-out broken": Case(TRAIN, 3, "eval.jsonl: 1 of 1 rows", rows("{", name="eval.jsonl")),
    "too long to train": Case(
        TRAIN + "data.max_length=8 data.truncation=error",
        3,
        "longer than max_length",
        rows(GOOD, BAD, GOOD | {"prompt": "a " * 9}),
    ),
    "eval without data": Case(EVAL.replace("eval.jsonl", "no.jsonl"), 3, "no.jsonl: No such file"),
    "eval of a folder": Case(EVAL.replace("eval.jsonl", "model"), 3, "model: a folder without data files"),
    "eval of broken rows": Case(EVAL, 3, "eval.jsonl: 1 of 2 rows", rows(GOOD, "[]", name="eval.jsonl")),
    "no prompts": Case(GENERATE + "--prompts {home}/no.txt", 3, "no.txt: No such file"),
    "prompts are a folder": Case(GENERATE + "--prompts {home}/model", 3, "model: Is a directory"),
    "prompts are empty": Case(GENERATE + "--prompts {home}/p.txt", 3, "p.txt: the file is empty", write("p.txt", "")),
    "prompts are blank": Case(
        GENERATE + "--prompts {home}/p.txt", 3, "p.txt: holds no prompt", write("p.txt", "\n \n")
    ),
    "prompts not UTF-8": Case(GENERATE + "--prompts {home}/p.txt", 3, "p.txt:2: .*UTF-8", write("p.txt", b"a\n\xff\n")),
    "prompt rows broken": Case(
        GENERATE + "--prompts {home}/p.jsonl", 3, "p.jsonl:2: row: broken JSON", rows(GOOD, "{", name="p.jsonl")
    ),
    "prompt row without prompt": Case(
        GENERATE + "--prompts {home}/p.jsonl", 3, "p.jsonl:1: prompt: missing", rows({"x": 1}, name="p.jsonl")
    ),
    "prompt is a number": Case(
        GENERATE + "--prompts {home}/p.jsonl", 3, "p.jsonl:1: prompt: must be text", rows({"prompt": 7}, name="p.jsonl")
    ),
    "prompt is half a surrogate": Case(
        GENERATE + "--prompts {home}/p.jsonl",
        3,
        "p.jsonl:1: prompt: .*surrogate",
        rows('{"prompt": "\\ud83d"}', name="p.jsonl"),
    ),
}

MODEL_FAULTS = {
    "no model": Case(TRAIN + "model.path={home}/no", 4, "model.path: no folder '.*no'"),
    "model is a file": Case(TRAIN + "model.path={home}/run.yaml", 4, "model.path: no folder '.*run.yaml'"),
    "no config.json": Case(TRAIN, 4, "model.path: no config.json", remove("model/config.json")),
    "no safetensors": Case(TRAIN, 4, r"model.path: no \*.safetensors", remove(WEIGHTS)),
    "no reference": Case(TRAIN + "reference.path={home}/no", 4, "reference.path: no folder '.*no'"),
    "no tokenizer": Case(
        TRAIN,
        4,
        "model: no tokenizer.json",
        lambda home: [file.unlink() for file in (home / "model").glob("tokenizer*")],
    ),
    "tokenizer damaged": Case(TRAIN, 4, "model: tokenizer.json cannot be read", write("model/tokenizer.json", "{}")),
    "config.json broken": Case(TRAIN, 4, "config.json: not valid JSON", write("model/config.json", "{")),
    "config.json not UTF-8": Case(
        TRAIN, 4, "config.json: not valid JSON", write("model/config.json", b'{"a": "\xe9"}')
    ),
    "unknown family": Case(TRAIN, 4, "config.json: model_type is 'bert'; supported", model_json(model_type="bert")),
    "no heads": Case(TRAIN, 4, "num_attention_heads is 0; wanted", model_json(num_attention_heads=0)),
    "vocabulary smaller than the tokenizer's": Case(
        TRAIN, 4, "model: its tokenizer makes token .* beyond the vocabulary of 20", smaller_vocabulary
    ),
    "reference of another vocabulary": Case(
        TRAIN + "reference.path={home}/other",
        4,
        "other: another tokenizer .* token 5 is 'b', there 'a'",
        other_vocabulary,
    ),
    "eval against another vocabulary": Case(
        EVAL.replace("--reference {home}/model", "--reference {home}/other"),
        4,
        "other: another tokenizer",
        other_vocabulary,
    ),
    "eval of no model": Case(EVAL.replace("eval {home}/model", "eval {home}/no"), 4, "no: no such folder"),
    "eval against no model": Case(EVAL.replace("--reference {home}/model", "--reference {home}/no"), 4, "no: no such"),
    "generate with no model": Case("generate {home}/no --prompt a", 4, "no: no such folder"),
    "generate with a file": Case("generate {home}/run.yaml --prompt a", 4, "run.yaml: no such folder"),
    "export of no run": Case("export {home}/no {home}/out", 4, "no: holds no .*checkpoint"),
    "export of no step": Case("export {home} {home}/out --step 3", 4, "holds no checkpoint-3"),
    "import of no file": Case("import-gguf {home}/no.gguf {home}/out", 4, "no.gguf: no such file"),
    "import of another file": Case("import-gguf {home}/run.yaml {home}/out", 4, "run.yaml: begins with b'outp'"),
    "import of a folder": Case("import-gguf {home}/model {home}/out", 4, "model: "),
}

WEIGHT_FAULTS = {
    "shape": Case(
        TRAIN,
        4,
        r"safetensors: tensor 'model.norm.weight' has shape \[3\]",
        tensors(lambda t: t.update({"model.norm.weight": np.ones(3, np.float32)})),
    ),
    "missing tensor": Case(
        TRAIN, 4, "missing tensor 'model.norm.weight'", tensors(lambda t: t.pop("model.norm.weight"))
    ),
    "unknown tensor": Case(TRAIN, 4, "unknown tensor 'x'", tensors(lambda t: t.update(x=np.ones(3, np.float32)))),
    "NaN": Case(TRAIN, 4, "'model.norm.weight' holds NaN", tensors(lambda t: t["model.norm.weight"].fill(np.nan))),
    "truncated": Case(TRAIN, 4, "model.safetensors: not a whole safetensors file", truncate(WEIGHTS)),
    "empty": Case(TRAIN, 4, "model.safetensors: .*the file is empty", write(WEIGHTS, "")),
    "a web page": Case(TRAIN, 4, "model.safetensors: .*a web page", write(WEIGHTS, "<!DOCTYPE html><p>Sorry")),
}

STORAGE_FAULTS = {
    "run folder below a file": Case(TRAIN + "output_dir={home}/run.yaml/run", 5, "output_dir: .*Not a directory"),
    "run folder is a file": Case(TRAIN + "output_dir={home}/run.yaml", 5, "output_dir: .*File exists"),
    "export over a folder": Case("export {home}/run {home}/model", 5, "model: already exists"),
    "import over a folder": Case(
        "import-gguf {home}/m.gguf {home}/model", 5, "model: already exists", write("m.gguf", b"GGUF")
    ),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("good"))


@pytest.fixture
def home(template, tmp_path):
    """A folder with a model, rows and a config, all good."""
    home = tmp_path / "home"
    shutil.copytree(template, home)
    (home / "run.yaml").write_text(RUN.format(home=home))
    return home


@pytest.fixture
def no_weights(monkeypatch):
    """Fails a test that reads weights: the fault is to be found before."""
    monkeypatch.setattr(hf, "open_tensors", lambda *_: pytest.fail("weights were read before the fault was found"))


def contents(home: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in home.rglob("*") if file.is_file()}


def check(case: Case, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs a case: one line at the end of stderr, the exit code, every file as it was."""
    case.damage(home)
    before = contents(home)
    code = cli.main(case.words.format(home=home).split())
    out, err = capsys.readouterr()
    assert (code, out) == (case.code, ""), err
    assert (err.count("rdro: error: "), err.count("Traceback")) == (1, 0), err
    last = err.splitlines()[-1]
    assert last.startswith("rdro: error: ")
    assert re.search(case.says, last), last
    assert before.items() <= contents(home).items()


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_config_fault(fault, home, capsys):
    check(CONFIG_FAULTS[fault], home, capsys)
    assert not (home / "run").exists()


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("fault", DATA_FAULTS)
def test_data_fault(fault, home, capsys):
    check(DATA_FAULTS[fault], home, capsys)


def test_bad_rows_are_listed_before_the_line_that_sums_them_up(home, capsys, no_weights):
    check(Case(TRAIN, 3, "2 of 4 rows", rows(GOOD, "{", BAD, "[]")), home, capsys)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_model_fault(fault, home, capsys):
    check(MODEL_FAULTS[fault], home, capsys)


@pytest.mark.parametrize("fault", WEIGHT_FAULTS)
def test_weight_fault(fault, home, capsys, monkeypatch):
    """Weights have to be opened to be found bad; nothing is computed from them."""
    policy = importlib.import_module("rdro_jax.train.policy")
    monkeypatch.setattr(policy, "completion_logps", lambda *_, **__: pytest.fail("bad weights were used"))
    check(WEIGHT_FAULTS[fault], home, capsys)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("fault", STORAGE_FAULTS)
def test_storage_fault(fault, home, capsys):
    check(STORAGE_FAULTS[fault], home, capsys)


ON_A_SMALL_DISK = """
import resource, signal, sys
from rdro_jax.cli import main
limit = int(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(sys.argv[2:]))
"""
"""`rdro` where no file may grow beyond a limit: every write beyond it fails as on a full disk."""


def on_a_small_disk(limit: int, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ON_A_SMALL_DISK, str(limit), *map(str, words)]
    return subprocess.run(command, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True, timeout=250)


@pytest.mark.parametrize(
    ("limit", "prepared", "says"),
    [
        (3000, False, "prepared: cannot be written .*too large.*data.prepared"),
        (8_000, True, "reference_store/.* cannot be written"),
        (20_000, True, "run: checkpoint not saved .*File too large"),
    ],
)
def test_full_disk(limit, prepared, says, home):
    (home / "train.jsonl").write_text((home / "train.jsonl").read_text() * (4 if limit == 20_000 else 40))
    if prepared:
        assert cli.main(["prepare", str(home / "run.yaml")]) == 0
    full = on_a_small_disk(limit, "train", home / "run.yaml", "max_steps=1")
    assert full.returncode == 5, full.stderr
    assert (full.stderr.count("rdro: error: "), full.stderr.count("Traceback")) == (1, 0), full.stderr
    assert re.search(f"^rdro: error: .*{says}", full.stderr.splitlines()[-1]), full.stderr


def test_a_full_disk_spares_what_is_there(home):
    """The exported folder stays whole when there is no room for the next one."""
    model = home / "model"
    before = contents(model)
    code = (
        "import resource, signal; from rdro_jax.models import load_model, save_model;"
        f"model = load_model({str(model)!r}); signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); save_model(*model, {str(model)!r})"
    )
    full = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert "StorageError" in full.stderr.splitlines()[-1]
    assert contents(model) == before
    assert sorted(path.name for path in home.iterdir()) == ["eval.jsonl", "model", "run.yaml", "train.jsonl"]
