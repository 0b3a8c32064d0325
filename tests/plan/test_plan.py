"""A plan compiles what a run runs, says where everything lies, and is believed only where a compiler agrees."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import make_batch

from rdro_jax.cli import main
from rdro_jax.errors import ConfigError
from rdro_jax.parallel import make_mesh
from rdro_jax.plan import advise, make_plan, parse_topology
from rdro_jax.plan.compiled import out_of_memory
from rdro_jax.plan.plan import planned_model
from rdro_jax.train.policy import policy_of
from rdro_jax.train.program import abstract_batch, abstract_state, lower_step

CPU = parse_topology("cpu:8")


def test_the_planned_program_is_the_one_a_run_compiles(load):
    """Lowered for arrays on their devices, as a run does, and for shapes alone, the text is the same to the letter."""
    config = load("mesh.fsdp=4", "mesh.data=2")
    policy = policy_of(planned_model(config, "cpu", 1), make_mesh(config.mesh))
    from rdro_jax.optim import make_optimizer

    loss = config.loss.resolve(0.5)
    state = abstract_state(config, policy, loss, make_optimizer(config.optimizer, 1000))
    batch, arguments = abstract_batch(config, policy), (config, policy, loss, 1000)
    planned = lower_step(*arguments, state, batch).as_text()
    zeros = lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)  # noqa: E731
    made = jax.tree.map(jax.device_put, make_batch([(2, 3)] * 8, rows=8), jax.tree.map(lambda x: x.sharding, batch))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(lambda x: (x.shape, x.dtype), batch)
    assert lower_step(*arguments, jax.tree.map(zeros, state), made).as_text() == planned


@pytest.fixture(scope="module")
def told(run_file, tmp_path_factory):
    """Exit code, output and JSON of `rdro plan` on simulated devices."""
    import contextlib
    import io

    file, out = tmp_path_factory.mktemp("plan") / "plan.json", io.StringIO()
    words = ["plan", str(run_file), "mesh.fsdp=4", "mesh.tensor=2", "--topology", "cpu:8", "--json", str(file)]
    with contextlib.redirect_stdout(out):
        code = main(words)
    return code, out.getvalue(), json.loads(file.read_text())[0]


def test_every_parameter_is_told_with_its_axes_and_bytes(told):
    code, text, figures = told
    assert code == 0
    places = {place["path"]: place for place in figures["layout"]}
    assert places["layers/mlp/up_proj/kernel"]["spec"] == "-, fsdp, tensor"
    assert places["layers/mlp/up_proj/kernel"]["device_bytes"] == 2 * 32 * 64 * 4 / 8
    assert places["norm/scale"]["spec"] == "whole"
    assert "layers/mlp/up_proj/kernel" in text
    assert "2x32x64" in text
    assert sum(place["device_bytes"] for place in places.values()) == figures["estimate"]["parameters"]
    assert figures["estimate"]["optimizer"] == 2 * figures["estimate"]["parameters"] + 2 * 4  # two counters


def test_the_compiler_is_heard(told):
    _, text, figures = told
    compiled = figures["compiled"]
    estimate = figures["estimate"]
    state = sum(estimate[part] for part in ("parameters", "optimizer", "batch"))
    assert compiled["arguments"] == state + 4 + 3 * 4  # the step's number; learning rate, alpha, the share of the rows
    assert compiled["peak"] == figures["peak_bytes"] > compiled["arguments"]
    assert compiled["collectives"]["all-reduce"]["sent"] > 0
    assert "peak as compiled" in text


def test_what_does_not_fit_ends_with_what_would(load, run_file, capsys):
    """Llama 3.1 8B on four v5e: the state alone is twice their memory, adapters are not."""
    preset = Path(__file__).parents[2] / "configs" / "models" / "llama-3.1-8b.yaml"
    words = [str(run_file), f"model.path={preset}", "model.compute_dtype=bfloat16", "data.max_length=2048"]
    assert main(["plan", *words, "--topology", "v5e:2x2", "--estimate"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "v5e:2x2: does not fit: " in last
    assert "model.lora.r=16 model.dtype=bfloat16" in last
    config = load(f"model.path={preset}", "data.max_length=2048", "model.lora.r=16", "model.dtype=bfloat16")
    assert make_plan(config, parse_topology("v5e:2x2"), compiling=False).fits


@pytest.mark.parametrize("name", ["v5e:2x2", "gpu:8xh100"])
def test_without_a_compiler_it_is_counted_and_said(no_compilers, run_file, capsys, name):
    assert main(["plan", str(run_file), "--topology", name]) == 0
    out, err = capsys.readouterr()
    assert f"{name}: its compiler is not installed" in err
    assert "counted instead, good to a tenth" in err
    assert f"{name}: fits by the estimate" in out


def test_slices_are_what_the_mesh_says_lies_across(load):
    """Refused as a run would be, also where nothing is compiled."""
    two = parse_topology("2xv5e:2x2")
    with pytest.raises(ConfigError, match=r"got dcn_data=1, dcn_fsdp=1 for devices in 2 slices; .* product is 2"):
        make_plan(load(), two, compiling=False)
    with pytest.raises(ConfigError, match=r"got dcn_data=2, dcn_fsdp=1 for devices in 1 slices; .* product is 1"):
        make_plan(load("mesh.data=2", "mesh.dcn_data=2"), parse_topology("v5e:2x2"), compiling=False)
    plan = make_plan(load("mesh.data=2", "mesh.dcn_data=2"), two, compiling=False)
    assert plan.mesh == {"data": 2, "fsdp": 4, "context": 1, "tensor": 1}
    preset = Path(__file__).parents[2] / "configs" / "models" / "llama-3.1-8b.yaml"
    words = [f"model.path={preset}", "data.max_length=2048", "global_batch_size=16", "model.remat=full"]
    words.append("model.compute_dtype=bfloat16")
    large = make_plan(load(*words, "mesh.data=2", "mesh.dcn_data=2"), parse_topology("2xv5e:2x4"), compiling=False)
    assert not large.fits
    keys = "mesh.data=1 mesh.fsdp=16 mesh.tensor=1 mesh.dcn_data=1 mesh.dcn_fsdp=2"
    assert advise(large).endswith(f" with {keys}")


def test_a_model_too_large_for_any_setting_is_told_the_number_of_devices(load):
    preset = Path(__file__).parents[2] / "configs" / "models" / "llama-3.1-70b.yaml"
    plan = make_plan(load(f"model.path={preset}"), parse_topology("v5e:2x2"), compiling=False)
    assert not plan.fits
    assert "alone want 71 such devices" in advise(plan)  # 70.6e9 x 16 bytes / (0.95 x 15.75 GiB)


def test_a_mesh_that_cuts_heads_is_refused_before_anything_is_compiled(load):
    with pytest.raises(ConfigError, match=r"mesh.tensor: got 4 for 4 heads and 2 key/value heads; .*: 1, 2"):
        make_plan(load("mesh.tensor=4"), CPU)


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (3.12T) "
            "exceeds available HBM (15.75G).",
            3.12 * 2**40,
            15.75 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: ... Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.",
            20.5 * 2**30,
            15.75 * 2**30,
        ),
    ],
)
def test_the_compilers_refusals_are_understood(message, needed, available):
    refusal = out_of_memory(message)
    assert (refusal.needed, refusal.available) == (needed, available)


def test_other_faults_of_a_compiler_are_not_taken_for_lack_of_memory():
    assert out_of_memory("INTERNAL: the compiler is confused (3 of 4)") is None


def test_adapters_leave_the_model_frozen_in_the_plan(load):
    plan = make_plan(load("model.lora.r=2", "model.dtype=bfloat16"), CPU, compiling=False)
    assert "layers/mlp/up_proj/kernel" in {place.path for place in plan.frozen}
    assert {place.path.rpartition("/")[2] for place in plan.params} == {"lora_A", "lora_B"}
    widest = 2 * 64 * 4  # rank, feed-forward columns, bytes: an adapter's gradient before it is scattered
    assert plan.parts.gradients == plan.parts.parameters + widest  # adapters are float32, as their gradients


def test_what_is_kept_grows_as_less_is_computed_again(load):
    kept = [
        make_plan(load(f"model.remat={remat}"), CPU, compiling=False).parts.kept for remat in ("full", "named", "dots")
    ]
    whole = make_plan(load("model.remat=none"), CPU, compiling=False).parts.kept
    inputs = 2 * 32 * 32 * 4  # layers, tokens of a row, width, bytes
    assert kept[0] == inputs
    assert kept[0] < kept[1] < kept[2] < whole


def test_a_batch_for_every_loss_has_what_it_reads(load):
    """Rows of a loader, as `tests/train` trains every loss on them, have the shapes that a plan takes them to have."""
    shapes = lambda config: abstract_batch(config, policy_of(planned_model(config, "cpu", 1), make_mesh(config.mesh)))  # noqa: E731
    kto, prompt, rdro = shapes(load("loss.name=kto")), shapes(load("loss.alpha=prompt")), shapes(load())
    assert (kto.mismatched.tokens.shape, kto.prompt_alpha) == ((8, 32), None)
    assert (prompt.mismatched, prompt.prompt_alpha.shape) == (None, (8, 4))
    assert (rdro.mismatched, rdro.prompt_alpha) == (None, None)
