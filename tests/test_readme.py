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
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
CI = re.findall(r"^(?:for stage in|run) (.*)", (ROOT / ".ci" / "run").read_text(), re.M)
STAGES = {word for line in CI for word in re.findall(r"[a-z-]+", line) if word in TARGETS}

ELSEWHERE = {
    r"make docs": "tests/test_site.py::test_site_builds_without_a_warning",
    r"make bench$": "tests/test_benchmarks.py::test_every_figure_is_written",
    r"rdro plan .*--estimate": "tests/test_readme.py::test_estimates_are_given_for_the_recipes_as_they_are",
    r"rdro plan (?!.*--estimate)": "tests/plan/test_plan.py::test_the_planned_program_is_the_one_a_run_compiles",
    r"rdro eval alpaca": "tests/evaluate/test_outputs.py::test_alpaca_rows_are_in_order_and_keep_their_data_set",
    r"rdro eval mt-bench": "tests/evaluate/test_outputs.py::"
    "test_the_second_turn_sees_the_first_answer_at_the_category_s_temperature",
    r"rdro eval judge": "tests/evaluate/test_judges.py::"
    "test_the_command_compares_files_with_a_judge_of_the_working_directory",
    r"rdro train --smoke": "tests/smoke/test_smoke.py::test_recipe_runs",
    r"rdro train (?!--smoke).*lora\.": "tests/train/test_lora_run.py::test_a_run_leaves_a_merged_model_and_an_adapter",
    r"rdro generate .*--chat": "tests/test_chat_command.py::test_each_turn_sees_what_was_said",
    r"rdro prepare .*--reference": "tests/train/test_loop.py::test_reference_log_probs_are_computed_once",
    r"rdro report .*runs/kto": "tests/report/test_page.py::test_summary_and_what_differs_in_the_configs",
    r"rdro study": "tests/study/test_run.py::test_study_reaches_its_figures",
    r"rdro sweep .*--dry-run": "tests/sweep/test_sweep.py::test_dry_run_prints_the_command_of_every_run",
    r"rdro sweep .*--status": "tests/sweep/test_sweep.py::test_status_shows_every_trial",
    r"rdro sweep .*--retry-failed": "tests/sweep/test_sweep.py::"
    "test_a_failed_trial_is_told_never_restarted_and_tried_again_when_asked",
    r"rdro sweep \S+$": "tests/sweep/test_sweep.py::test_seeds_give_a_mean_with_an_interval_and_the_best_config_loads",
    r"rdro launch": "tests/launch/test_launch.py::test_dry_run_prints_the_run_s_command",
}
"""Commands that need more than the reader's folder here has -> the test that runs them, on other files or machines."""

BY_HAND = {
    r"rdro eval lm": "downloads the benchmarks; `make parity` compares the model class it hands over",
    r"make (smoke|sweep-study|sweep-faults|bench-trl|wheel-check|test-newest)": "minutes to a quarter of an hour",
    r"make plans|pip install|export PYTHONPATH": "XLA's GPU compiler: gigabytes, beside an environment of its own",
    r"python -m benchmarks\.head": "figures of a machine; the tests of benchmarks run its parts in small",
    r"\S+/python benchmarks/model_memory.py": "gigabytes",
    r"\S+/python benchmarks/generation.py": "minutes, beside torch",
    r"python launch/render.py": "writes into launch/; a test compares what stands there with what it would write",
    r"make help": "prints the targets",
}
"""Commands that nothing in `.ci/run` runs -> why not. test_pages.py parses them, or looks up their target."""

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


def inline(page: str) -> list[str]:
    """Commands in backticks with all their words: names of commands and those with words in capitals are not whole."""
    spans = [" ".join(span.split()) for span in re.findall(r"`((?:rdro|make|python) [^`]+)`", page)]
    return [
        span for span in spans if span.startswith("make ") or re.match(r"(rdro \S+|python) [^A-Z]*[/.][^A-Z]*$", span)
    ]


def commands() -> list[str]:
    """Those of the README in its order, then what the pages add, then what stands within a line."""
    pages = [README, *PAGES.values()]
    lines = [line for page in pages for block in blocks("sh", page) for line in block.splitlines()]
    lines += [line for page in pages for line in inline(page)]
    return list(dict.fromkeys(line.partition("  #")[0].strip() for line in lines))


def stage_of_ci(command: str) -> bool:
    words = command.split()
    return words[0] == "make" and words[1] in STAGES


def runs_here(command: str) -> bool:
    return not stage_of_ci(command) and not any(re.match(pattern, command) for pattern in ELSEWHERE | BY_HAND)


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


def test_estimates_are_given_for_the_recipes_as_they_are(monkeypatch):
    monkeypatch.chdir(ROOT)
    asked = [command for command in commands() if "--estimate" in command]
    assert len(asked) > 1
    assert all("fits by the estimate" in run_command(command) for command in asked)


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
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.M), test
    for pattern in ELSEWHERE | BY_HAND:
        assert any(re.match(pattern, command) for command in commands()), pattern
    assert sum(map(runs_here, commands())) > 15


def test_commands_within_a_line_are_found():
    found = inline(
        "Ask `rdro plan configs/rdro.yaml\n--topology v5e:4x4` or `make docs`, not `rdro plan` or `rdro eval MODEL`."
    )
    assert found == ["rdro plan configs/rdro.yaml --topology v5e:4x4", "make docs"]


def test_long_commands_are_run_by_ci():
    assert {"setup", "lint", "test", "parity", "faults", "quickstart"} <= STAGES


def test_exit_codes_are_those_of_the_code():
    from rdro_jax import errors

    table = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.M)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RdroError)]
    known = {kind.exit_code for kind in kinds}
    assert table == known | {errors.EXIT_DONE, errors.EXIT_RESTART, errors.EXIT_INTERNAL, EXIT_INTERRUPTED}


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
