"""The command line from outside: what it prints, where, and the exit code a launcher sees."""

import json
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from rdro_jax import cli
from rdro_jax.cli.entry import make_parser
from rdro_jax.cli.generate import read_prompts
from rdro_jax.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    RecordError,
    StorageError,
    WeightError,
)

COMMANDS = (
    *("train", "prepare", "preview", "eval", "eval lm", "eval alpaca", "eval mt-bench", "eval judge"),
    *("generate", "export", "report", "status"),
    *("plan", "sweep", "launch", "import-gguf", "study", "doctor", "quickstart"),
)
HEAVY = ("jax", "numpy", "pydantic", "omegaconf", "transformers", "flax", "orbax", "grain", "rich")

CONFIG = """\
output_dir: {folder}/run
model: {{path: {folder}/base}}
data: {{train: {folder}/rows.jsonl}}
loss: {{name: rdro}}
"""


@pytest.fixture
def run(capsys):
    """Runs the command line in this process: exit code, stdout, stderr."""

    def call(*argv: object):
        code = cli.main([str(word) for word in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def room(monkeypatch):
    """Puts a function in place of a room's, and records what it was called with."""

    def replace(module: str, name: str, result: object = None):
        calls = []

        def stand_in(*args, **kwargs):
            calls.append((args, kwargs))
            if isinstance(result, BaseException):
                raise result
            return result

        stub = types.ModuleType(module)
        setattr(stub, name, stand_in)
        monkeypatch.setitem(sys.modules, module, stub)
        return calls

    return replace


@pytest.fixture
def config_file(tmp_path):
    """A config whose files are all there."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(folder=tmp_path))
    return path


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=lambda words: words[0])
def test_help_imports_nothing_heavy(words):
    code = (
        f"import sys\nfrom rdro_jax import cli\n"
        f"try: cli.main({words})\nexcept SystemExit as done: assert not done.code\n"
        f"print('LOADED', [name for name in {HEAVY} if name in sys.modules])"
    )
    out = python(code).stdout
    assert out.endswith("LOADED []\n")
    assert "exit codes: 0 done, 2 configuration or usage" in out
    assert words == ["--help"] or f"example: rdro {words[0]}" in out


def test_help_is_there_in_half_a_second():
    """The best of five: what else the machine does is not ours to measure."""
    command = [str(Path(sys.executable).with_name("rdro")), "--help"]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def test_a_broken_pipe_to_another_than_the_reader_is_no_success(monkeypatch, capfd):
    """To a store or a tracker: 0 would tell a launcher that the run is done."""

    def fail(folder):
        raise BrokenPipeError

    monkeypatch.setattr("rdro_jax.report.status.read_status", fail)
    assert cli.main(["status", "runs/first"]) == 70
    assert "BrokenPipeError is a bug of rdro" in capfd.readouterr().err


def test_a_reader_that_has_enough_is_no_fault():
    """`rdro ... | head -1` closes the pipe early."""
    command = [str(Path(sys.executable).with_name("rdro")), "--version"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (0, b"")


def test_package_is_lazy():
    code = f"import sys, rdro_jax; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code).stdout == "[]\n"


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listing = capsys.readouterr().out
    assert all(name in listing for name in COMMANDS)
    assert tuple(make_parser().get_default("commands")) == COMMANDS


USAGE = {
    ("trian",): "unknown command 'trian'; did you mean 'train'?",
    ("import_gguf",): "unknown command 'import_gguf'; did you mean 'import-gguf'?",
    ("xyzzy",): f"unknown command 'xyzzy'; wanted {', '.join(COMMANDS)}",
    (): "no command; 'rdro --help' lists them",
    ("train",): "the following arguments are required: CONFIG; 'rdro train --help' tells more",
    ("train", "c.yaml", "--pirnt"): "unknown arguments: --pirnt; 'rdro train --help' tells more",
    ("quickstart", "seed=3"): "unknown arguments: seed=3; 'rdro quickstart --help' tells more",
    ("generate", "m"): (
        "one of the arguments --prompt --prompts --chat is required; 'rdro generate --help' tells more"
    ),
    ("generate", "m", "--prompt", "a", "--temperature", "-1"): (
        "argument --temperature: got -1; wanted 0 or more; 'rdro generate --help' tells more"
    ),
    ("generate", "m", "--prompt", "a", "--max-new-tokens", "0"): (
        "argument --max-new-tokens: got 0; wanted 1 or more; 'rdro generate --help' tells more"
    ),
}


@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_usage_errors_are_one_line(run, words):
    assert run(*words) == (2, "", f"rdro: error: command line: {USAGE[words]}\n")


def test_version(run):
    from importlib.metadata import version

    assert run("--version") == (0, f"rdro_jax {version('rdro_jax')}\n", "")


FAULTS = [ConfigError, RecordError, WeightError, CheckpointError, StorageError, DivergedError]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_users_fault_is_one_line_and_its_exit_code(run, room, fault):
    room("rdro_jax.quickstart", "run", fault("where: got this; wanted that"))
    expected = {ConfigError: 2, RecordError: 3, WeightError: 4, CheckpointError: 4, StorageError: 5, DivergedError: 6}
    assert run("quickstart") == (expected[fault], "", "rdro: error: where: got this; wanted that\n")


def test_a_bug_shows_its_traceback(run, room):
    room("rdro_jax.quickstart", "run", ZeroDivisionError("by zero"))
    code, out, err = run("quickstart")
    assert (code, out) == (70, "")
    assert "Traceback" in err
    assert err.endswith("rdro: error: this ZeroDivisionError is a bug of rdro; please report the lines above\n")


def test_interrupted(run, room):
    room("rdro_jax.quickstart", "run", KeyboardInterrupt())
    assert run("quickstart") == (130, "", "rdro: error: interrupted\n")


def test_train_hands_over_the_config(run, room, config_file):
    calls, asked = room("rdro_jax.train", "train"), room("rdro_jax.cli.doctor", "ask_first")
    assert run("train", config_file, "seed=3", "loss.alpha=0.25") == (0, "", "")
    assert asked == calls
    [((config,), _)] = calls
    assert (config.seed, config.loss.alpha) == (3, 0.25)
    assert run("train", config_file, "--json") == (0, "", "")
    assert calls[1][0][0].report_to == ("tensorboard", "json")


def test_overrides_may_follow_an_option(run, room, config_file):
    code, out, _ = run("train", config_file, "seed=3", "--print-config", "max_steps=7")
    assert code == 0
    assert "seed: 3\n" in out
    assert "max_steps: 7\n" in out


def test_print_config_trains_nothing_and_reads_back(run, room, config_file, tmp_path):
    from rdro_jax.config import load_config

    calls = room("rdro_jax.train", "train")
    (tmp_path / "rows.jsonl").unlink()  # a config can be looked at where its data are not
    code, out, err = run("train", config_file, "--print-config")
    assert (code, err, calls) == (0, "", [])
    (tmp_path / "printed.yaml").write_text(out)
    assert load_config(tmp_path / "printed.yaml") == load_config(config_file)


def test_eval_prints_json(run, room):
    calls = room("rdro_jax.evaluate", "evaluate", {"auc": 0.75})
    code, out, _ = run("eval", "runs/a", "--reference", "base", "--data", "rows.jsonl")
    assert (code, json.loads(out)) == (0, {"auc": 0.75})
    assert calls == [
        (
            ("runs/a",),
            {
                "reference": "base",
                "data": "rows.jsonl",
                "max_length": None,
                "alpha": None,
                "step": None,
                "completions": 0,
                "max_new_tokens": 256,
            },
        )
    ]


def test_export_and_import_say_what_they_wrote(run, room):
    exported = room("rdro_jax.export", "export")
    assert run("export", "runs/a", "out", "--step", 5) == (0, "out\n", "")
    assert exported == [((Path("runs/a"), Path("out")), {"step": 5, "dtype": None, "adapter": False})]
    imported = room("rdro_jax.models.gguf", "import_gguf", Path("out"))
    assert run("import-gguf", "m.gguf", "out") == (0, "out\n", "")
    assert imported == [((Path("m.gguf"), Path("out")), {})]


def test_quickstart_has_a_folder_of_its_own(run, room):
    calls = room("rdro_jax.quickstart", "run")
    run("quickstart")
    run("quickstart", "--out", "elsewhere")
    assert calls == [((Path("runs/quickstart"),), {}), ((Path("elsewhere"),), {})]


def test_prompts_of_a_file(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "one", "label": true}\n\n{"prompt": [{"role": "user", "content": "two"}]}\n')
    assert list(read_prompts(str(rows))) == ["one", [{"role": "user", "content": "two"}]]
    lines = tmp_path / "lines.txt"
    lines.write_text("  one\n\n{two}\r\n")
    assert list(read_prompts(str(lines))) == ["one", "{two}"]
