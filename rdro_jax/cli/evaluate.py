"""`rdro eval KIND`: benchmarks and judges. The plain `rdro eval MODEL` is one of the commands over runs."""

import argparse
import json
from pathlib import Path
from typing import Any

from rdro_jax.cli.generate import read_prompts
from rdro_jax.cli.parser import add_command, positive, seed, temperature

KINDS = ("lm", "alpaca", "mt-bench", "judge")
"""Second words of `rdro eval` that name a command of their own; a folder so called is `./lm`."""


def join_kind(argv: list[str]) -> list[str]:
    """`eval lm ...` as the one command `eval lm`."""
    return [f"eval {argv[1]}", *argv[2:]] if argv[:1] == ["eval"] and argv[1:2] and argv[1] in KINDS else argv


def add_eval_lm(commands: Any) -> None:
    """Add `rdro eval lm`."""
    parser = add_command(
        commands,
        "eval lm",
        _lm,
        "run tasks of lm-evaluation-harness on a model",
        "rdro eval lm models/aligned --tasks bbh_cot_fewshot --limit 100",
        "\nPrints the harness's results as JSON. Needs it: pip install 'rdro_jax[lm-eval]'; its data are on the hub.",
    )
    parser.add_argument("model", metavar="MODEL_OR_RUN", help="Hugging Face folder, or the folder of a run")
    parser.add_argument("--tasks", metavar="A,B", required=True, help="tasks by the harness's names")
    parser.add_argument("--include-path", metavar="DIR", help="folder of YAML files of further tasks")
    parser.add_argument("--num-fewshot", metavar="N", type=int, help="examples in the prompt (default: the task's)")
    parser.add_argument("--limit", metavar="N", type=positive, help="first N documents of each task")
    parser.add_argument("--chat", action="store_true", help="ask by the model's chat template")


def _lm(arguments: argparse.Namespace) -> None:
    from rdro_jax.evaluate.harness import run_tasks

    tasks = [task.strip() for task in arguments.tasks.split(",") if task.strip()]
    options = {"num_fewshot": arguments.num_fewshot, "limit": arguments.limit, "apply_chat_template": arguments.chat}
    found = run_tasks(arguments.model, tasks, include_path=arguments.include_path, **options)
    print(json.dumps(found, indent=2, default=str))


def _add_answering(parser: argparse.ArgumentParser, asked: str, what: str) -> None:
    """Arguments of a command by which a model answers a file's prompts into another file."""
    parser.add_argument("model", metavar="MODEL", help="Hugging Face folder")
    parser.add_argument(asked, metavar="FILE", type=Path, required=True, help=what)
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="file to write")
    parser.add_argument("--name", metavar="NAME", help="the model's name in the file (default: its folder's)")
    parser.add_argument("--max-new-tokens", metavar="N", type=positive, default=1024, help="default %(default)s")
    parser.add_argument("--seed", metavar="N", type=seed, default=0, help="seed of the sampling")


def add_eval_alpaca(commands: Any) -> None:
    """Add `rdro eval alpaca`."""
    parser = add_command(
        commands,
        "eval alpaca",
        _alpaca,
        "answer prompts into a file that AlpacaEval 2 reads",
        "rdro eval alpaca models/aligned --prompts alpaca_eval.json --out outputs/aligned.json",
        "\nThen: alpaca_eval --model_outputs outputs/aligned.json. Prompts: *.json, a list of objects with instruction;"
        "\n*.jsonl rows with a prompt field; or one prompt per line.",
    )
    _add_answering(parser, "--prompts", "the prompt set")
    parser.add_argument(
        "--temperature", metavar="T", type=temperature, default=0.7, help="default %(default)s; 0 greedy"
    )


def _alpaca(arguments: argparse.Namespace) -> None:
    from rdro_jax.evaluate.outputs import alpaca_outputs, read_objects, write_rows
    from rdro_jax.generate import Sampling
    from rdro_jax.generate.chat import load_assistant

    as_list = arguments.prompts.suffix == ".json"
    prompts = list(read_objects(arguments.prompts)) if as_list else list(read_prompts(str(arguments.prompts)))
    sampling = Sampling(arguments.max_new_tokens, temperature=arguments.temperature)
    name = arguments.name or Path(arguments.model).name
    rows = alpaca_outputs(load_assistant(arguments.model), prompts, sampling, generator=name, seed=arguments.seed)
    print(write_rows(arguments.out, rows))


def add_eval_mt_bench(commands: Any) -> None:
    """Add `rdro eval mt-bench`."""
    parser = add_command(
        commands,
        "eval mt-bench",
        _mt_bench,
        "answer MT-Bench's two-turn questions into a file that FastChat's judge reads",
        "rdro eval mt-bench models/aligned --questions question.jsonl --out model_answer/aligned.jsonl",
        "\nTemperatures are those of FastChat by category.",
    )
    _add_answering(parser, "--questions", "MT-Bench's question.jsonl")


def _mt_bench(arguments: argparse.Namespace) -> None:
    from rdro_jax.evaluate.outputs import mt_bench_answers, read_questions, write_rows
    from rdro_jax.generate.chat import load_assistant

    questions = read_questions(arguments.questions)
    name, most = arguments.name or Path(arguments.model).name, arguments.max_new_tokens
    assistant = load_assistant(arguments.model)
    rows = mt_bench_answers(assistant, questions, model_id=name, max_new_tokens=most, seed=arguments.seed)
    print(write_rows(arguments.out, rows))


def add_eval_judge(commands: Any) -> None:
    """Add `rdro eval judge`."""
    parser = add_command(
        commands,
        "eval judge",
        _judge,
        "compare the answers of two models by a judge that is a Python function",
        "rdro eval judge outputs/aligned.json outputs/sft.json --judge rdro_jax.quickstart.judge:score",
        "\nThe files are those of `rdro eval alpaca`; score(prompt, completion) says how good an answer is. Prints the"
        "\nwin rate of the first over the second as JSON, plain and length-controlled, with 95 % bootstrap intervals.",
    )
    parser.add_argument("first", metavar="A", type=Path, help="outputs of the model in question")
    parser.add_argument("second", metavar="B", type=Path, help="outputs of the model it is compared with")
    parser.add_argument("--judge", metavar="MODULE:FUNCTION", required=True, help="the judge")
    parser.add_argument(
        "--other", metavar="C", type=Path, action="append", default=[],
        help="outputs of a further model, to tell how easy each prompt is to win against B; repeat for more",
    )  # fmt: skip


def _judge(arguments: argparse.Namespace) -> None:
    from rdro_jax.evaluate.judges import compare_files, load_judge

    files = (arguments.first, arguments.second)
    print(json.dumps(compare_files(*files, load_judge(arguments.judge), arguments.other), indent=2))
