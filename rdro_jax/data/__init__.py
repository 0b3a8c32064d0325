"""Rows of preference data -> packed batches: files, formats, chat templates, packing, order."""

from rdro_jax.data.chat import load_tokenizer, render_prompt, tokenizer_hash
from rdro_jax.data.config import DataConfig
from rdro_jax.data.examples import ClassReport, DataReport, Examples, load_examples
from rdro_jax.data.loader import Loader, epoch_order, make_loader
from rdro_jax.data.pack import pack_batch, pack_row, plan_rows

__all__ = [
    "ClassReport",
    "DataConfig",
    "DataReport",
    "Examples",
    "Loader",
    "epoch_order",
    "load_examples",
    "load_tokenizer",
    "make_loader",
    "pack_batch",
    "pack_row",
    "plan_rows",
    "render_prompt",
    "tokenizer_hash",
]
