"""The copy in an object store: a machine without the run folder goes on from it, bit for bit; damage is never used."""

import itertools
import shutil
from contextlib import contextmanager
from pathlib import Path

import fsspec
import jax
import jax.numpy as jnp
import pytest

from rdro_jax.checkpoint import (
    CheckpointConfig,
    CheckpointWriter,
    checkpoint_path,
    list_steps,
    manifest_path,
    sound_steps,
)
from rdro_jax.config import load_config
from rdro_jax.errors import CheckpointError, ConfigError, RestartWanted, StorageError
from rdro_jax.run_files import ALPHA_FILE, METRICS_FILE, read_metrics
from rdro_jax.train import loop, mirror, train
from rdro_jax.train.mirror import pull, push


@pytest.fixture(params=["file", "memory"])
def mirrored(request, tmp_path):
    """A run folder with checkpoints of steps 2 and 3, of three saved, and the URL of its copy."""
    url = {"file": f"file://{tmp_path}/store/run", "memory": f"memory://bucket/{tmp_path.name}"}[request.param]
    run = tmp_path / "run"
    run.mkdir()
    (run / METRICS_FILE).write_text('{"step": 3}\n')
    (run / ALPHA_FILE).write_text("{}")
    writer = CheckpointWriter(run, CheckpointConfig(), lambda step: push(run, url, step))
    for step in (1, 2, 3):
        writer.save(step, {"params": {"kernel": jnp.full(3, step / 3)}}, {})
    writer.wait()
    return run, url


def files(folder: Path):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_empty_folder_gets_what_the_copy_has(mirrored, tmp_path):
    run, url = mirrored
    store, folder = fsspec.core.url_to_fs(url)
    assert {Path(name).name for name in store.ls(folder, detail=False)} == {path.name for path in run.iterdir()}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert pull(elsewhere, url) == []
    assert files(elsewhere) == files(run)
    (run / METRICS_FILE).write_text("ours")
    assert pull(run, url) == []
    assert (run / METRICS_FILE).read_text() == "ours"  # what is here is as new


def test_a_damaged_copy_is_passed_over(mirrored, tmp_path):
    _, url = mirrored
    store, folder = fsspec.core.url_to_fs(url)
    for sound, step in ((2, 3), (None, 2)):
        name = next(name for name in store.find(f"{folder}/checkpoint-{step}") if store.size(name))
        raw = bytearray(store.cat(name))
        raw[len(raw) // 2] ^= 1
        store.pipe(name, bytes(raw))
        elsewhere = tmp_path / f"elsewhere-{step}"
        elsewhere.mkdir()
        if sound is None:
            with pytest.raises(CheckpointError, match="no checkpoint can be restored"):
                pull(elsewhere, url)
        else:
            [fault] = pull(elsewhere, url)
            assert Path(name).name in fault
            assert sound_steps(elsewhere) == (sound, [])


def test_the_newest_checkpoint_comes_last_so_that_a_pull_cut_short_begins_anew(mirrored, tmp_path, monkeypatch):
    run, url = mirrored
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "find_fault", lambda _, step: pytest.fail("cut short") if step == 3 else None)
        with pytest.raises(pytest.fail.Exception):
            pull(elsewhere, url)
    assert list_steps(elsewhere) == [2]
    assert pull(elsewhere, url) == []
    assert files(elsewhere) == files(run)


@pytest.mark.parametrize("damage", ["a file", "a torn manifest", "no manifest", "every checkpoint"])
def test_what_is_damaged_here_comes_back_from_the_copy(damage, mirrored):
    run, url = mirrored
    whole = files(run)
    for step in (2, 3) if damage == "every checkpoint" else (3,):
        file = next(path for path in checkpoint_path(run, step).rglob("*") if path.is_file() and path.stat().st_size)
        if "manifest" in damage:
            file = manifest_path(run, step)
        raw = file.read_bytes()
        file.write_bytes(raw[: len(raw) // 2])
        if damage == "no manifest":
            file.unlink()
    assert pull(run, url) == []
    assert files(run) == whole


def test_what_is_damaged_here_and_there_stays_as_it_is(mirrored):
    run, url = mirrored
    store, folder = fsspec.core.url_to_fs(url)
    for step in (2, 3):
        manifest_path(run, step).write_text("{}")
        store.pipe(f"{folder}/checkpoint-{step}.manifest.json", b"{}")
    before = files(run)
    assert len(pull(run, url)) == 2
    assert files(run) == before
    with pytest.raises(CheckpointError, match="no checkpoint can be restored"):
        sound_steps(run)


def test_what_was_being_copied_does_not_count(mirrored, tmp_path):
    _, url = mirrored
    store, folder = fsspec.core.url_to_fs(url)
    store.rm(f"{folder}/checkpoint-3.manifest.json")
    (tmp_path / "elsewhere").mkdir()
    pull(tmp_path / "elsewhere", url)
    assert list_steps(tmp_path / "elsewhere") == [2]


def test_a_store_that_cannot_be_written_ends_the_run(tmp_path):
    (tmp_path / "no-folder").write_text("")
    writer = CheckpointWriter(tmp_path, CheckpointConfig(), lambda step: push(tmp_path, f"{tmp_path}/no-folder", step))
    writer.save(1, {"params": {"kernel": jnp.ones(3)}}, {})
    with pytest.raises(StorageError, match="checkpoint-1 not copied"):
        writer.wait()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nowhere://b", "nowhere"),
        ("s3://key:secret@b/run", "in the environment"),
        ("https://b/run?token=secret", "in the environment"),
        ("abfs://b/run", "adlfs"),
    ],
)
def test_what_no_store_is_for_is_refused(tmp_path, url, says):
    with pytest.raises(ConfigError, match=says) as refused:
        pull(tmp_path, url)
    assert "secret" not in str(refused.value)


def test_a_run_goes_on_on_another_machine(config_file, tmp_path, monkeypatch):
    """The run folder is lost after a stop: the copy has all that the run needs to end as if nothing had happened."""
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: one)
    words = ["mesh.data=1", "mesh.fsdp=1", f"data.prepared={tmp_path}/prepared"]
    whole = train(load_config(config_file, [*words, f"output_dir={tmp_path}/whole"])).run_dir
    config = load_config(config_file, [*words, f"checkpoint.mirror=file://{tmp_path}/bucket"])
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requests", _after_four)
        with pytest.raises(RestartWanted):
            train(config)
    shutil.rmtree(config.output_dir)
    run = train(config).run_dir
    timeless = lambda run: [  # noqa: E731
        {key: value for key, value in line.items() if not key.startswith(("time/", "throughput/"))}
        for line in read_metrics(run / METRICS_FILE)
    ]
    assert timeless(run) == timeless(whole)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@contextmanager
def _after_four(_):
    asked = itertools.count(1)
    yield lambda _: "test" if next(asked) == 4 else None
