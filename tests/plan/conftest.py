"""A config of a tiny model that is only an architecture: what a plan asks for."""

import importlib.util

import pytest

from rdro_jax.config import load_config

PRESET = """
config:
  model_type: qwen2
  vocab_size: 64
  hidden_size: 32
  intermediate_size: 64
  num_hidden_layers: 2
  num_attention_heads: 4
  num_key_value_heads: 2
  rms_norm_eps: 0.000001
  tie_word_embeddings: true
"""


@pytest.fixture(scope="session")
def run_file(tmp_path_factory):
    """A run's config whose model is a preset and whose data are not there."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "tiny.yaml").write_text(PRESET)
    (folder / "run.yaml").write_text(
        f"{{output_dir: {folder}/run, model: {{path: {folder}/tiny.yaml}}, global_batch_size: 8, "
        "data: {train: nothing.jsonl, max_length: 32, slots: 4}, loss: {name: rdro}}"
    )
    return folder / "run.yaml"


@pytest.fixture
def load(run_file):
    """The config with overrides."""
    return lambda *overrides: load_config(run_file, overrides)


@pytest.fixture
def no_compilers(monkeypatch):
    """A machine with jax alone: what plugins lie in is not there either."""
    find = importlib.util.find_spec

    def find_none(module):
        if module.startswith("jax_plugins."):
            raise ModuleNotFoundError("No module named 'jax_plugins'")
        return None if module == "libtpu" else find(module)

    monkeypatch.setattr("importlib.util.find_spec", find_none)
