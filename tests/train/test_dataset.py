"""Reference log-probs of a run's examples: those of the reference by its own architecture."""

import dataclasses
import shutil

import jax
import numpy as np
from tiny import CONFIG

from rdro_jax.config import load_config
from rdro_jax.data import load_examples, load_tokenizer, pack_batch
from rdro_jax.models import RopeConfig, init_params, save_model
from rdro_jax.parallel import make_mesh
from rdro_jax.train import completion_logps
from rdro_jax.train.dataset import reference_logps
from rdro_jax.train.policy import make_policy


def test_a_reference_computes_as_its_own_folder_says(config_file, folder, tmp_path):
    """Another width and another rope base; the latter would pass without a sign."""
    shape = dataclasses.replace(CONFIG, d_ff=128, rope=RopeConfig(theta=100.0))
    params = init_params(shape, jax.random.key(1))
    save_model(params, shape, tmp_path / "other")
    for file in (folder / "model").glob("*token*"):
        shutil.copy(file, tmp_path / "other")
    config = load_config(config_file, [f"reference.path={tmp_path / 'other'}", "global_batch_size=16"])
    examples = load_examples(config.data.train, load_tokenizer(config.model.path), config.data)
    policy = make_policy(config.model.path, make_mesh(config.mesh))
    alone = np.arange(len(examples.lengths), dtype=np.int32)[:, None]
    wanted = completion_logps(params, shape, pack_batch(examples, alone, max_length=32))[:, 0]
    np.testing.assert_allclose(reference_logps(config, policy, examples), wanted, rtol=1e-5)
