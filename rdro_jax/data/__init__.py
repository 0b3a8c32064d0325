"""Rows of preference data -> packed batches: files, formats, chat templates, packing, order."""

from rdro_jax.data.chat import load_tokenizer, render_prompt, tokenizer_hash
from rdro_jax.data.config import DataConfig, Source, sources_of
from rdro_jax.data.examples import Examples, take_examples, token_examples
from rdro_jax.data.loader import Loader, epoch_order, make_loader
from rdro_jax.data.mismatched import Mismatched
from rdro_jax.data.pack import make_batch, pack_batch, pack_row, plan_rows
from rdro_jax.data.prepare import prepare
from rdro_jax.data.prompts import prompt_rates, shared_prompts
from rdro_jax.data.reading import load_examples
from rdro_jax.data.report import ClassReport, DataReport, Layout
from rdro_jax.data.vocabulary import check_words

__all__ = [
    "ClassReport",
    "DataConfig",
    "DataReport",
    "Examples",
    "Layout",
    "Loader",
    "Mismatched",
    "Source",
    "check_words",
    "epoch_order",
    "load_examples",
    "load_tokenizer",
    "make_batch",
    "make_loader",
    "pack_batch",
    "pack_row",
    "plan_rows",
    "prepare",
    "prompt_rates",
    "render_prompt",
    "shared_prompts",
    "sources_of",
    "take_examples",
    "token_examples",
    "tokenizer_hash",
]
