"""Answers of a model in the files that AlpacaEval 2 and MT-Bench read."""

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rdro_jax.errors import RecordError, StorageError
from rdro_jax.generate import Sampling
from rdro_jax.generate.chat import Assistant, answer

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""Of MT-Bench by category, as FastChat has them."""
OTHER_TEMPERATURE = 0.7
"""FastChat's for a question of another category, or of none."""
TURNS = 2


def alpaca_outputs(
    assistant: Assistant, prompts: Sequence[Any], sampling: Sampling, *, generator: str, seed: int = 0
) -> list[dict[str, Any]]:
    """One object per prompt, in its order: `instruction`, `output`, `generator`, what AlpacaEval's loader asks for.

    A prompt is a text, a list of messages (its last one is the instruction) or an object with `instruction`, whose
    `dataset` is kept.

    Raises: RecordError for an object without one.
    """
    asked = [_asked(prompt, number) for number, prompt in enumerate(prompts, start=1)]
    texts = answer(assistant, asked, sampling, seed=seed)
    return [
        {"instruction": _instruction(ask), "output": text, "generator": generator, "dataset": _dataset(prompt)}
        for prompt, ask, text in zip(prompts, asked, texts, strict=True)
    ]


def _asked(prompt: Any, number: int) -> Any:
    if not isinstance(prompt, Mapping):
        return prompt
    if not isinstance(prompt.get("instruction"), str):
        raise RecordError(f"prompt {number}: an object without a text `instruction`; wanted AlpacaEval's prompt set")
    return prompt["instruction"]


def _instruction(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _dataset(prompt: Any) -> str:
    return prompt.get("dataset", "rdro") if isinstance(prompt, Mapping) else "rdro"


def mt_bench_answers(
    assistant: Assistant, questions: Sequence[Mapping[str, Any]], *, model_id: str, max_new_tokens: int, seed: int = 0
) -> list[dict[str, Any]]:
    """One object per question, as FastChat's `model_answer/*.jsonl` has them; the second turn sees the first answer."""
    conversations: list[list[dict[str, str]]] = [[] for _ in questions]
    for turn in range(TURNS):
        for temperature in sorted({_temperature(question) for question in questions}):
            members = [index for index, question in enumerate(questions) if _temperature(question) == temperature]
            for index in members:
                conversations[index].append({"role": "user", "content": questions[index]["turns"][turn]})
            asked = [conversations[index] for index in members]
            texts = answer(assistant, asked, Sampling(max_new_tokens, temperature=temperature), seed=seed + turn)
            for index, text in zip(members, texts, strict=True):
                conversations[index].append({"role": "assistant", "content": text})
    return [
        {
            "question_id": question["question_id"],
            "answer_id": uuid.uuid5(uuid.NAMESPACE_URL, f"{model_id}/{question['question_id']}").hex,
            "model_id": model_id,
            "choices": [{"index": 0, "turns": [turn["content"] for turn in conversation[1::2]]}],
            "tstamp": time.time(),
        }
        for question, conversation in zip(questions, conversations, strict=True)
    ]


def _temperature(question: Mapping[str, Any]) -> float:
    return TEMPERATURES.get(question.get("category", ""), OTHER_TEMPERATURE)


def read_questions(path: Path) -> list[dict[str, Any]]:
    """MT-Bench's questions: JSON lines of `question_id`, `category` and two `turns`. Raises: RecordError."""
    questions = list(read_objects(path))
    for number, question in enumerate(questions, start=1):
        turns = question.get("turns")
        if "question_id" not in question or not isinstance(turns, list) or len(turns) != TURNS:
            raise RecordError(f"{path}:{number}: wanted question_id, category and a list of two turns")
    return questions


def read_objects(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list or of JSON lines. Raises: RecordError naming the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read ({error})") from error
    whole = text.lstrip().startswith("[")
    rows = [(1, text)] if whole else [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for number, row in rows:
        try:
            value = json.loads(row)
        except json.JSONDecodeError as error:
            raise RecordError(f"{path}:{number}: not JSON: {error.msg}") from error
        for item in value if whole else [value]:
            if not isinstance(item, dict):
                raise RecordError(f"{path}:{number}: got {type(item).__name__}; wanted JSON objects")
            yield item


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write objects as a JSON list, or as JSON lines where the name ends in .jsonl. Raises: StorageError."""
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        text = json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; wanted a file that can be written") from error
    return path
