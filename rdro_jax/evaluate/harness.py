"""Our models in lm-evaluation-harness: the three kinds of request it makes, and `rdro eval lm`."""

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
from jinja2 import TemplateError

from rdro_jax.data.chat import load_tokenizer
from rdro_jax.errors import ConfigError
from rdro_jax.evaluate.likelihood import Scorer, load_scorer, score_continuations
from rdro_jax.generate import BUCKET, Sampling, sample

GENERATION_ROWS = 16
"""Requests answered side by side."""
MOST_NEW_TOKENS = 256
"""Tokens of an answer where a task does not say; the harness's own number."""


class Answers:
    """The harness's three kinds of request, answered by our forward pass; a mix-in of its `TemplateLM`."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = folder
        self.tokenizer = load_tokenizer(folder)
        self.scorer = load_scorer(folder)
        self.max_length = self.scorer.model.max_position_embeddings

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else first

    @property
    def tokenizer_name(self) -> str:
        return str(self.folder).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode([self.prefix_token_id]))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        asked = [(context, continuation) for _, context, continuation in requests]
        return [tuple(found) for found in score_continuations(self.scorer, asked, max_length=self.max_length)]  # pyright: ignore[reportReturnType]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        from lm_eval import utils  # pyright: ignore[reportMissingImports]

        cut = partial(
            utils.get_rolling_token_windows,
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        texts = [self.tok_encode(request.args[0]) for request in requests]
        windows = [[utils.make_disjoint_window(window) for window in cut(token_list=ids)] for ids in texts]
        flat = [window for parts in windows for window in parts]
        logps = iter(score_continuations(self.scorer, flat, max_length=self.max_length))
        return [sum(next(logps).logp for _ in parts) for parts in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return answer_requests(
            self.scorer, self.tokenizer, [request.args for request in requests], self.tok_encode, self.max_length
        )

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        render = partial(
            self.tokenizer.apply_chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        try:
            return render(chat_history)
        except TemplateError:  # as the harness does: a task's description becomes a turn that some templates refuse
            return render([turn for turn in chat_history if turn["role"] != "system"])


def make_harness_model(folder: str | Path) -> Any:
    """An `lm_eval.api.model.LM` of the model in a Hugging Face folder, for `lm_eval.simple_evaluate(model=...)`.

    Tokenises, truncates and stops as the harness's own `--model hf` does, computes in float32 on all devices.

    Raises: ConfigError where lm-eval is not installed, WeightError for a folder that cannot be used.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError("rdro eval lm needs lm-evaluation-harness: pip install 'rdro_jax[lm-eval]'")
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]

    return type("HarnessModel", (Answers, TemplateLM), {})(folder)


def answer_requests(
    scorer: Scorer, tokenizer: Any, requests: Sequence[tuple[str, dict[str, Any]]], encode: Any, max_length: int
) -> list[str]:
    """Text generated for each (context, options), cut before the first stop text; the longest contexts go first."""
    prompts = [encode(context) for context, _ in requests]
    answers = [""] * len(requests)
    groups: dict[str, list[int]] = {}
    for index in sorted(range(len(requests)), key=lambda index: -len(prompts[index])):
        groups.setdefault(repr(requests[index][1]), []).append(index)
    for members in groups.values():
        options = requests[members[0]][1]
        for start in range(0, len(members), GENERATION_ROWS):
            part = members[start : start + GENERATION_ROWS]
            # A key of its own: what a task asks repeatedly, to sample several answers, may fall into several parts.
            key = jax.random.fold_in(jax.random.key(0), part[0])
            texts = _generate(scorer, tokenizer, [prompts[index] for index in part], options, max_length, key)
            for index, text in zip(part, texts, strict=True):
                answers[index] = text
    return answers


def _generate(
    scorer: Scorer,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    options: dict[str, Any],
    max_length: int,
    key: jax.Array,
) -> list[str]:
    from lm_eval.models.utils import normalize_gen_kwargs  # pyright: ignore[reportMissingImports]

    wanted = normalize_gen_kwargs(options, MOST_NEW_TOKENS)
    stops = [text for text in wanted["until"] if text]
    room = max_length - wanted["max_gen_toks"]
    if room < 1:
        most = f"a task wants answers of {wanted['max_gen_toks']} tokens"
        raise ConfigError(f"rdro eval lm: {most}, the model's window is {max_length}; leave out this task")
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    done = sample(
        scorer.params,
        scorer.model,
        [prompt[-room:] for prompt in prompts],
        Sampling(
            wanted["max_gen_toks"],
            temperature=wanted.get("temperature", 1.0) if wanted["do_sample"] else 0.0,
            top_k=wanted.get("top_k"),
            top_p=wanted.get("top_p", 1.0),
        ),
        stop_ids=(*scorer.model.eos_token_ids, tokenizer.eos_token_id),
        stop_strings=stops,
        decode=decode,
        key=key,
        logps=False,
        bucket=BUCKET,
    )
    texts = [decode(completion.tokens) for completion in done]
    for stop in [*stops, tokenizer.decode([tokenizer.eos_token_id])]:
        texts = [text.split(stop)[0] for text in texts]
    return texts


def run_tasks(
    folder: str | Path, tasks: Sequence[str], *, include_path: str | None = None, **options: Any
) -> dict[str, Any]:
    """Results of tasks by name: the harness's own, or those of YAML files in the folder `include_path`.

    `options` are those of `lm_eval.simple_evaluate`.
    """
    model = make_harness_model(folder)
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    known = TaskManager(include_path=include_path)
    # Matrix products of float32 are of fewer bits on GPUs and TPUs, unless asked for.
    with jax.default_matmul_precision("highest"):
        found = lm_eval.simple_evaluate(model=model, tasks=list(tasks), task_manager=known, **options)
    return {key: found[key] for key in ("results", "groups", "versions", "n-shot", "n-samples") if key in found}
