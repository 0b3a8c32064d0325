"""Every command and snippet of the README and of docs/ is run: here with a tiny model, or where `ELSEWHERE` says."""

import contextlib
import io
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from tiny import CONFIG
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rdro_jax import cli
from rdro_jax.cli.entry import EXIT_INTERRUPTED
from rdro_jax.config import load_config
from rdro_jax.models import init_params, load_model, save_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
RUN_BY_CI = {"make quickstart", "make test"}

ELSEWHERE = {
    r"make (setup|lint|test|parity|quickstart)": ".ci/run",
    r"make docs": "tests/test_site.py",
    r"make bench": "tests/test_benchmarks.py",
    r"\S+/python benchmarks/model_memory.py": "benchmarks/model_memory.py",  # gigabytes: by hand only
    r"\S+/python benchmarks/generation.py": "benchmarks/generation.py",  # minutes beside torch: by hand only
    r"pip install|export PYTHONPATH": "Makefile",  # what `make plans` does
    r"rdro plan": "tests/plan/test_plan.py",
    r"rdro eval (lm|alpaca|mt-bench|judge)": "tests/evaluate",
    r"rdro train .*lora": "tests/train/test_lora_run.py",
    r"rdro generate .*--chat": "tests/test_chat_command.py",
    r"rdro prepare .*--reference": "tests/train/test_loop.py",
    r"rdro report .*runs/kto": "tests/report/test_page.py",
    r"rdro study": "tests/study/test_run.py",
    r"rdro sweep": "tests/sweep/test_sweep.py",
    r"rdro launch": "tests/launch/test_launch.py",
}
"""Commands that need more than the reader's folder here has -> what runs them, on other files or machines."""

SMALL = {"max_length: 2048": "max_length: 64", "batch_size: 32": "batch_size: 8", "bfloat16": "float32", "full": "none"}
"""What the recipes say at the size of a model -> the same at the size of a test."""

CHATML = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
WORDS = ["<unk>", "<|im_start|>", "<|im_end|>", "user", "assistant"]
WORDS += ["Name", "a", "colour", ".", "Green", "I", "would", "rather", "not"]


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)


def commands() -> list[str]:
    """Those of the README in its order, then what the pages add."""
    lines = [line for page in (README, *PAGES.values()) for block in blocks("sh", page) for line in block.splitlines()]
    return list(dict.fromkeys(line.partition("  #")[0].strip() for line in lines))


def runs_here(command: str) -> bool:
    return not any(re.match(pattern, command) for pattern in ELSEWHERE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a reader has: a checkout's configs (their sizes made small), a model, data."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "configs", folder / "configs")
    paper = folder / "configs" / "base" / "paper.yaml"
    text = paper.read_text()
    for big, small in SMALL.items():
        assert big in text
        text = text.replace(big, small)
    paper.write_text(text)
    config = replace(CONFIG, eos_token_ids=(WORDS.index("<|im_end|>"),))
    save_model(init_params(config, jax.random.key(0)), config, folder / "models" / "base")
    make_tokenizer().save_pretrained(folder / "models" / "base")
    rows = [json.loads(line) for line in blocks("json")[0].splitlines()]
    for name in ("train.jsonl", "held_out.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows * 20))
    return folder


def make_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    core.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=CHATML
    )


@pytest.fixture(scope="module")
def outputs(folder):
    """What each `rdro` command prints, run in this order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return {command: run_command(command) for command in filter(runs_here, commands())}


def run_command(command: str) -> str:
    program, *words = shlex.split(command)
    assert program == "rdro"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(words) == 0, command
    return out.getvalue()


def test_commands_end_in_an_aligned_model(outputs, folder):
    params, config = load_model(folder / "models" / "aligned")
    assert config.vocab_size == CONFIG.vocab_size
    base = load_model(folder / "models" / "sft")[0]
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, base))


def test_eval_prints_figures(outputs):
    [printed] = [text for command, text in outputs.items() if command.startswith("rdro eval")]
    assert isinstance(json.loads(printed), dict)


def test_generate_prints_an_answer(outputs):
    printed = {command: text for command, text in outputs.items() if command.startswith("rdro generate")}
    [text] = [text for command, text in printed.items() if "--n " not in command]
    [rows] = [text.splitlines() for command, text in printed.items() if "--n 3" in command]
    assert set(text.split()) <= set(WORDS)
    assert len(rows) == 3


def test_generate_answers_a_file_as_it_answers_each_prompt(outputs, folder, monkeypatch):
    monkeypatch.chdir(folder)
    prompts = ["Name a colour .", "Green Green", "I would rather not Name a colour ."]
    Path("prompts.txt").write_text("\n".join(prompts))
    lines = run_command("rdro generate models/aligned --prompts prompts.txt --max-new-tokens 5").splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["prompt"] for answer in answers] == prompts
    one = "rdro generate models/aligned --max-new-tokens 5 --prompt"
    assert [answer["completion"] + "\n" for answer in answers] == [run_command(f"{one} '{p}'") for p in prompts]


def test_print_config_sets_the_keys(outputs):
    printed = {command: text for command, text in outputs.items() if command.endswith("--print-config")}
    for command, text in printed.items():
        [alpha] = re.findall(r"loss\.alpha=(\S+)", command)
        assert f"alpha: {alpha}\n" in text
    assert "learning_rate: 1.0e-06\n" in next(iter(printed.values()))


def test_example_config_loads(tmp_path):
    shutil.copytree(ROOT / "configs" / "base", tmp_path / "base")
    (tmp_path / "mine.yaml").write_text(blocks("yaml")[0])
    assert load_config(tmp_path / "mine.yaml").data.eval == "held_out.jsonl"


def test_python_snippets_run(outputs, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for number, snippet in enumerate(
        snippet for page in (README, PAGES["quickstart"]) for snippet in blocks("python", page)
    ):
        exec(compile(snippet, f"python snippet {number}", "exec"), {})


def test_commands_that_are_not_run_here_are_run_elsewhere():
    for pattern, place in ELSEWHERE.items():
        assert (ROOT / place).exists()
        assert any(re.match(pattern, command) for command in commands()), pattern
    assert sum(map(runs_here, commands())) > 12


def test_long_commands_are_run_by_ci():
    script = (ROOT / ".ci" / "run").read_text()
    stages = re.search(r"for stage in (.*); do", script).group(1).split()
    assert {f"make {stage}" for stage in stages} >= RUN_BY_CI
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(stages) <= set(targets)


def test_exit_codes_are_those_of_the_code():
    from rdro_jax import errors

    table = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.M)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RdroError)]
    known = {kind.exit_code for kind in kinds}
    assert table == known | {errors.EXIT_DONE, errors.EXIT_RESTART, errors.EXIT_INTERNAL, EXIT_INTERRUPTED}


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
