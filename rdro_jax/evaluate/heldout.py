"""`rdro eval`: a policy and its reference over labelled rows, the same program and the same numbers as in training."""

from pathlib import Path
from typing import Any

import numpy as np

from rdro_jax.data import DataConfig, Examples, check_words, load_examples, load_tokenizer
from rdro_jax.evaluate.onpolicy import on_policy
from rdro_jax.losses import RDRO
from rdro_jax.models import load_model, load_model_config
from rdro_jax.parallel import MeshConfig, make_mesh, rows_sharding
from rdro_jax.train.dataset import HeldoutSet
from rdro_jax.train.heldout import heldout_intervals, heldout_metrics, heldout_pictures
from rdro_jax.train.policy import make_policy
from rdro_jax.train.scoring import score_examples

ROWS_PER_DEVICE = 2


def evaluate(
    model: str | Path,
    *,
    reference: str | Path,
    data: str | Path,
    max_length: int = 1024,
    slots: int = 16,
    alpha: float | None = None,
    completions: int = 0,
    max_new_tokens: int = 256,
) -> dict[str, Any]:
    """Held-out metrics of a policy (`train.heldout.heldout_metrics`), their intervals by prompt, histogram and curve.

    `model` and `reference` are Hugging Face folders (a finished run is one); `data` is a JSONL file of labelled rows;
    `alpha` is the share of desirable rows the ratio is measured against, by default that of `data`. With `completions`
    the policy writes so many of at most `max_new_tokens` tokens to each prompt: `onpolicy.kl_figures`.
    Policy and reference are loaded one after the other, so that one model's memory is enough.
    """
    config = DataConfig(train=str(data), max_length=max_length, slots=slots)
    examples = load_examples(str(data), load_tokenizer(str(model)), config)
    check_words(examples.tokens, {str(folder): load_model_config(folder).vocab_size for folder in (model, reference)})
    logps = {
        folder: folder_logps(folder, examples, max_length=max_length, slots=slots) for folder in (model, reference)
    }
    loss = RDRO(alpha=examples.report.alpha if alpha is None else alpha)
    scored = HeldoutSet(examples, logps[reference], None, None).inputs(logps[model])
    prompts = examples.prompt_hashes
    of: Any = {"prompts": prompts, "paired": examples.report.format == "paired"}
    metrics, intervals = heldout_metrics(loss, scored, **of), heldout_intervals(loss, scored, **of)
    if completions:
        drawn = on_policy(
            model, reference=reference, examples=examples, completions=completions, max_new_tokens=max_new_tokens
        )
        metrics, intervals = metrics | drawn[0], intervals | drawn[1]
    return metrics | {"intervals": intervals, **heldout_pictures(loss, scored)}


def folder_logps(folder: str | Path, examples: Examples, *, max_length: int, slots: int) -> np.ndarray:
    """Completion log-probs, in nats, of all examples under the model in a Hugging Face folder, in float32."""
    mesh = make_mesh(MeshConfig())
    policy = make_policy(folder, mesh)
    params, _ = load_model(folder, shardings=policy.param_shardings)
    return score_examples(
        examples,
        lambda batch: policy.score(params, batch),
        rows=ROWS_PER_DEVICE * mesh.size,
        max_length=max_length,
        slots=slots,
        sharding=rows_sharding(mesh),
        title=f"scoring with {Path(folder).name}",
    )
