"""A run that trains adapters: the base stays as it is, the run resumes bit for bit, and its policy leaves both ways."""

import jax
import numpy as np
import pytest
from tiny import make_batch

from rdro_jax import cli
from rdro_jax.checkpoint import CheckpointWriter
from rdro_jax.config import load_config
from rdro_jax.errors import ConfigError
from rdro_jax.losses import RDRO
from rdro_jax.models import adapt, load_adapters, load_model
from rdro_jax.optim import make_optimizer
from rdro_jax.parallel import make_mesh
from rdro_jax.train import make_train_step, train
from rdro_jax.train.loop import load_state
from rdro_jax.train.policy import completion_logps, make_policy
from rdro_jax.train.run import RunFolder
from rdro_jax.train.trained import step_params

LORA = (
    *("global_batch_size=16", "num_train_epochs=6"),
    *("model.lora.r=4", "model.lora.lora_alpha=8", "model.lora.lora_dropout=0.1"),
)


@pytest.fixture
def finished(config_file):
    return train(load_config(config_file, LORA))


def test_a_run_leaves_a_merged_model_and_an_adapter(finished, folder, config_file, tmp_path):
    """Base and adapter beside each other are the merged model; a further run can start from them."""
    assert finished.metrics["rewards/margins"] > 0
    params, model = load_model(folder / "model")
    merged, _ = load_model(finished.run_dir)
    adapters, lora = load_adapters(finished.run_dir / "adapter", model)
    changed = jax.tree.map(lambda one, other: bool((one != other).any()), params, merged)
    assert changed["layers"]["self_attn"]["q_proj"]["kernel"]
    assert not any(jax.tree.leaves([changed["embed_tokens"], changed["norm"], changed["layers"]["input_layernorm"]]))
    batch = make_batch([(4, 6), (3, 5)], rows=1)
    beside = completion_logps(adapt(params, adapters, lora), model, batch)
    np.testing.assert_allclose(beside, completion_logps(merged, model, batch), atol=1e-4)

    further = [*LORA, f"output_dir={tmp_path / 'further'}", f"model.lora.adapter={finished.run_dir / 'adapter'}"]
    with pytest.raises(ConfigError, match=r"model.lora.r: got 5; .*adapter was made with 4"):
        train(load_config(config_file, [*further, "model.lora.r=5"]))
    # Its reference is base and adapter together: a run refuses to start where the two differ.
    assert train(load_config(config_file, [*further, "max_steps=1"])).metrics["loss"] == pytest.approx(1.386, abs=0.05)


def test_killed_and_started_again_it_ends_with_the_same_adapters(finished, config_file, tmp_path, monkeypatch):
    """Dropout included: its draws follow from seed, step and tokens."""
    config = load_config(config_file, [*LORA, f"output_dir={tmp_path / 'stopped'}"])
    save, steps = CheckpointWriter.save, []

    def save_and_die(writer, step, *args, **more):
        save(writer, step, *args, **more)
        steps.append(step)
        if len(steps) == 1:
            writer.wait()
            raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointWriter, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    resumed = train(config)
    assert steps[0] == 3 < steps[1]
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (resumed.run_dir / name).read_bytes() == (finished.run_dir / name).read_bytes()


def test_only_adapters_have_moments_and_the_base_may_be_bfloat16(config_file, tmp_path):
    config = load_config(config_file, [*LORA, "model.dtype=bfloat16"])
    policy, loss = make_policy(config.model.path, make_mesh(config.mesh)), RDRO(alpha=0.5)
    optimizer = make_optimizer(config.optimizer, 10)
    state = load_state(config, RunFolder(tmp_path, 0, None), policy, optimizer, loss)
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim) == 2 * trained
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.frozen)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
    assemble = lambda params, state, batch: step_params(config, params, state, batch)  # noqa: E731
    step = make_train_step(policy.logps, loss, optimizer, assemble=assemble, num_microbatches=2)
    after, _ = jax.jit(step)(state, make_batch([(4, 6), (3, 5), (4, 4), (6, 3)] * 8, rows=16))
    jax.tree.map(np.testing.assert_array_equal, after.frozen, state.frozen)
    moved = jax.tree.map(lambda one, other: bool((one != other).any()), after.params, state.params)
    assert all(leaf["lora_B"] for leaf in moved["layers"]["self_attn"].values())


def test_export_writes_either_form(finished, tmp_path, capsys):
    run = str(finished.run_dir)
    assert cli.main(["export", run, str(tmp_path / "merged")]) == 0
    assert cli.main(["export", run, str(tmp_path / "adapter"), "--adapter"]) == 0
    for form, name in ((".", "model.safetensors"), ("adapter", "adapter_model.safetensors")):
        exported = tmp_path / ("merged" if form == "." else form) / name
        assert exported.read_bytes() == (finished.run_dir / form / name).read_bytes()
