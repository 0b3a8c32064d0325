"""Checkpoints: what is saved comes back bit for bit, a half-written one never counts, old ones go."""

import itertools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rdro_jax import checkpoint
from rdro_jax.checkpoint import (
    CheckpointConfig,
    CheckpointWriter,
    best_step,
    checkpoint_path,
    find_fault,
    list_steps,
    load_items,
    load_meta,
    manifest_path,
    set_aside,
    sound_steps,
)
from rdro_jax.errors import CheckpointError


def items(value):
    return {"params": {"kernel": jnp.full((3, 2), value)}, "opt_state": (jnp.arange(4), {"mu": jnp.full(2, value)})}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def test_newest_two_are_kept_and_come_back(tmp_path):
    writer = CheckpointWriter(tmp_path, CheckpointConfig(save_total_limit=2))
    for step in (5, 10, 100):
        writer.save(step, items(step / 3), {"config": {"seed": step}})
    writer.wait()
    assert list_steps(tmp_path) == [10, 100]
    assert load_meta(tmp_path, 100) == {"config": {"seed": 100}}
    wanted = items(100 / 3)
    jax.tree.map(np.testing.assert_array_equal, load_items(tmp_path, 100, abstract(wanted)), wanted)
    only = load_items(tmp_path, 10, {"params": abstract(wanted)["params"]})
    np.testing.assert_array_equal(only["params"]["kernel"], np.full((3, 2), np.float32(10 / 3)))


def test_a_half_written_checkpoint_does_not_count(tmp_path):
    writer = CheckpointWriter(tmp_path, CheckpointConfig())
    writer.save(1, items(1.0), {})
    writer.wait()
    (tmp_path / "checkpoint-2.orbax-checkpoint-tmp-0").mkdir()
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3.saving").touch()
    assert sound_steps(tmp_path) == (1, [])
    CheckpointWriter(tmp_path, CheckpointConfig())
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-1.manifest.json"}


class Killed(BaseException):
    """The process ends here."""


def test_a_kill_at_any_moment_of_saving_and_pruning_leaves_two_sound_ones_and_no_rest(tmp_path, monkeypatch):
    """Before every change of the folder's names, after the first two are saved."""
    for after in itertools.count():
        run = tmp_path / str(after)
        run.mkdir()
        writer = CheckpointWriter(run, CheckpointConfig())
        for step in (1, 2):
            writer.save(step, items(step / 3), {})
        writer.wait()
        left = [after]

        def die(real, left=left):
            def call(*args, **how):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return real(*args, **how)

            return call

        with monkeypatch.context() as patch:
            for name in ("touch", "unlink", "rename", "replace"):
                patch.setattr(Path, name, die(getattr(Path, name)))
            patch.setattr(checkpoint.shutil, "rmtree", die(shutil.rmtree))
            done = False
            try:
                writer.save(3, items(1.0), {})
                writer.wait()
                done = True
            except Killed:
                pass
        step, faults = sound_steps(run)
        assert step in (2, 3)
        assert faults == []
        assert sum(find_fault(run, step) is None for step in list_steps(run)) >= 2
        writer = CheckpointWriter(run, CheckpointConfig())
        for step in (3, 4):
            writer.save(step, items(2.0), {})
        writer.wait()
        names = {f"checkpoint-{step}{end}" for step in (3, 4) for end in ("", ".manifest.json")}
        assert {path.name for path in run.iterdir()} == names
        if done:
            break
    assert after > 5


@pytest.fixture
def two(tmp_path):
    """A folder with checkpoints of steps 1 and 2."""
    writer = CheckpointWriter(tmp_path, CheckpointConfig())
    for step in (1, 2):
        writer.save(step, items(step / 3), {})
    writer.wait()
    assert sound_steps(tmp_path) == (2, [])
    return tmp_path


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE = {
    "deleted": lambda file: file.unlink(),
    "emptied": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "one bit flipped": flip,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_any_damage_to_any_file_is_found_and_the_older_one_taken(two, damage):
    files = [file for file in checkpoint_path(two, 2).rglob("*") if file.is_file() and file.stat().st_size]
    assert len(files) > 5
    for file in files:
        whole = file.read_bytes()
        DAMAGE[damage](file)
        step, [fault] = sound_steps(two)
        assert step == 1
        assert str(file) in fault
        file.write_bytes(whole)
    assert sound_steps(two) == (2, [])


def test_a_damaged_manifest_is_a_fault_too(two):
    manifest_path(two, 2).write_text("{")
    assert sound_steps(two) == (1, [f"{manifest_path(two, 2)}: not as it was written"])
    manifest_path(two, 2).unlink()
    assert sound_steps(two) == (1, [f"{manifest_path(two, 2)}: missing"])
    manifest_path(two, 1).unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint can be restored \(.*checkpoint-2.manifest.json: missing"):
        sound_steps(two)


def test_a_flipped_digit_of_a_metric_does_not_choose_the_best(tmp_path):
    config = CheckpointConfig(metric_for_best_model="eval_loss", save_total_limit=3)
    writer = CheckpointWriter(tmp_path, config)
    for step, metric in ((1, 0.2), (2, 0.5)):
        writer.save(step, items(step), {}, {"eval_loss": metric})
    writer.wait()
    file = manifest_path(tmp_path, 2)
    file.write_text(file.read_text().replace("0.5", "0.1"))
    assert best_step(tmp_path, config) == 1
    assert find_fault(tmp_path, 2) == f"{file}: not as it was written"


def test_the_manifest_says_what_the_checkpoint_is_of(two):
    told = json.loads(manifest_path(two, 2).read_text())
    assert told["step"] == 2
    assert told["arrays"] == {
        "params/kernel": "float32[3,2]",
        "opt_state/0": "int32[4]",
        "opt_state/1/mu": "float32[2]",
    }
    assert told["versions"]["jax"] == jax.__version__
    writer = CheckpointWriter(two, CheckpointConfig())
    for step, seed in ((3, 1), (4, 1), (5, 2)):
        writer.save(step, items(1.0), {"config": {"seed": seed}})
        writer.wait()
        told[step] = json.loads(manifest_path(two, step).read_text())["config"]
    assert told[3] == told[4] != told[5]


def test_what_was_passed_over_is_set_aside_and_goes_when_the_next_one_is_whole(tmp_path):
    writer = CheckpointWriter(tmp_path, CheckpointConfig())
    for step in (6, 9):
        writer.save(step, items(step), {})
    writer.wait()
    flip(next(file for file in checkpoint_path(tmp_path, 9).rglob("*") if file.is_file() and file.stat().st_size))
    set_aside(tmp_path, 6)
    assert list_steps(tmp_path) == [6]
    assert (tmp_path / "checkpoint-9.damaged" / manifest_path(tmp_path, 9).name).exists()
    writer = CheckpointWriter(tmp_path, CheckpointConfig())
    writer.save(10, items(7.0), {})
    writer.wait()
    assert list_steps(tmp_path) == [6, 10]
    assert not list(tmp_path.glob("*.damaged"))


def test_where_all_are_damaged_nothing_is_overwritten(two):
    for step in (1, 2):
        flip(next(file for file in checkpoint_path(two, step).rglob("*") if file.is_file() and file.stat().st_size))
    before = {path: path.stat().st_mtime_ns for path in two.rglob("*")}
    with pytest.raises(CheckpointError, match=r"no checkpoint can be restored \(.*not as it was written"):
        sound_steps(two)
    assert {path: path.stat().st_mtime_ns for path in two.rglob("*")} == before


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(two):
    flip(next(file for file in checkpoint_path(two, 2).rglob("*") if file.is_file() and file.stat().st_size))
    writer = CheckpointWriter(two, CheckpointConfig())
    writer.save(2, items(5.0), {})
    writer.wait()
    assert sound_steps(two) == (2, [])
    np.testing.assert_array_equal(load_items(two, 2, abstract(items(5.0)))["params"]["kernel"], np.full((3, 2), 5.0))


def test_other_shapes_are_refused(tmp_path):
    writer = CheckpointWriter(tmp_path, CheckpointConfig())
    writer.save(1, items(1.0), {})
    writer.wait()
    other = {"params": {"kernel": jax.ShapeDtypeStruct((5, 2), jnp.float32)}}
    with pytest.raises(CheckpointError, match=str(checkpoint_path(tmp_path, 1))):
        load_items(tmp_path, 1, other)


def test_another_type_is_refused_not_cast(tmp_path):
    writer = CheckpointWriter(tmp_path, CheckpointConfig())
    writer.save(1, items(1.0), {})
    writer.wait()
    wanted = abstract(items(1.0))
    wanted["opt_state"][1]["mu"] = jax.ShapeDtypeStruct((2,), jnp.bfloat16)
    with pytest.raises(CheckpointError, match="opt_state/1/mu was saved as float32; wanted bfloat16"):
        load_items(tmp_path, 1, wanted)


@pytest.mark.parametrize(("greater", "kept"), [(False, [2, 4, 5]), (True, [3, 4, 5])])
def test_the_best_one_is_kept_beside_the_newest(greater, kept, tmp_path):
    config = CheckpointConfig(metric_for_best_model="eval_loss", greater_is_better=greater)
    writer = CheckpointWriter(tmp_path, config)
    for step, metric in ((1, 0.5), (2, 0.2), (3, 0.9), (4, None), (5, 0.5)):
        writer.save(step, items(step), {}, {"eval_loss": metric})
    writer.wait()
    assert list_steps(tmp_path) == kept
    assert best_step(tmp_path, config) == kept[0]
    # A run that goes on without the metric, or by another one, keeps nothing for the sake of the old one.
    for step, other in ((6, None), (7, "eval_rewards/auc")):
        writer = CheckpointWriter(tmp_path, CheckpointConfig(metric_for_best_model=other, greater_is_better=greater))
        writer.save(step, items(step), {}, other and {other: 0.6})
        writer.wait()
        assert list_steps(tmp_path) == [step - 1, step]


def test_it_comes_back_on_other_devices_and_axes(tmp_path):
    """Saved in four parts; whole, in two and in eight parts, split along the other axis, it is the same."""
    kernel = np.arange(128, dtype=np.float32).reshape(8, 16)

    def placed(count, *axes):
        mesh = jax.make_mesh((count,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])
        return NamedSharding(mesh, PartitionSpec(*axes))

    writer = CheckpointWriter(tmp_path, CheckpointConfig())
    writer.save(1, {"params": {"kernel": jax.device_put(kernel, placed(4, "x"))}}, {})
    writer.wait()
    for where in (placed(1), placed(2, "x"), placed(8, "x"), placed(2, None, "x"), placed(8, None, "x")):
        wanted = {"params": {"kernel": jax.ShapeDtypeStruct(kernel.shape, kernel.dtype, sharding=where)}}
        found = load_items(tmp_path, 1, wanted)["params"]["kernel"]
        assert found.sharding == where
        np.testing.assert_array_equal(found, kernel)
