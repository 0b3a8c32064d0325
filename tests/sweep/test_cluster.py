"""A sweep that names a cluster file: its runs begin with the settings of that machine."""

import shlex
from pathlib import Path

import pytest

from rdro_jax import cli
from rdro_jax.errors import ConfigError
from rdro_jax.launch import launch
from rdro_jax.sweep.points import dry_run, known_points
from rdro_jax.sweep.spec import load_sweep

SETTINGS = ("model.remat=full", "num_microbatches=4", "mesh.fsdp=2")
WORDS = list(SETTINGS)


def cluster_file(folder, settings=SETTINGS, name="slurm"):
    file = folder / "cluster.yaml"
    own = {"slurm": "", "sky": "accelerators: H100:8, bucket: gs://b, "}[name]
    file.write_text(f"cluster: {{name: {name}, {own}settings: [{', '.join(settings)}]}}")
    return str(file)


@pytest.mark.parametrize("engine", ["slurm", "sky"])
def test_runs_begin_with_the_settings_of_the_cluster(sweep_file, tmp_path, capsys, engine):
    own = {"slurm": {}, "sky": {"task": "task.yaml"}}[engine]
    executor = {"name": engine, "cluster": cluster_file(tmp_path, name=engine), **own}
    file = sweep_file(executor=executor)
    assert cli.main(["sweep", str(file), "--dry-run"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[3:6] for line in lines] == [WORDS, WORDS]
    loaded = load_sweep(file)
    [config, _] = map(loaded.config, known_points(loaded))
    assert (config.model.remat, config.num_microbatches, config.mesh.fsdp) == ("full", 4, 2)


def test_keys_of_the_sweep_win_over_those_of_the_cluster(sweep_file, tmp_path):
    executor = {"name": "slurm", "cluster": cluster_file(tmp_path)}
    space = {"num_microbatches": {"choice": [1, 2]}}
    file = sweep_file(executor=executor, sampler={"name": "grid"}, space=space, set={"model": {"remat": "none"}})
    loaded = load_sweep(file)
    configs = [loaded.config(point) for point in known_points(loaded)]
    assert [config.num_microbatches for config in configs] == [1, 2]
    assert {config.model.remat for config in configs} == {"none"}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sky", SETTINGS, r"sweep\.yaml:\d+: executor\.cluster: .*cluster\.yaml is for 'sky'; wanted one for 'slurm'"),
        ("slurm", ("model.remt=full",), r"cluster\.yaml: settings: model\.remt: unknown key; did you mean 'remat'"),
        ("slurm", ("num_microbatches=3",), r"global_batch_size: got 8, wanted a multiple of num_microbatches=3"),
        ("slurm", ("model.remat=all; rm",), r"cluster\.yaml:1: cluster\.settings\.0: got"),
    ],
)
def test_a_cluster_that_does_not_fit_is_told_before_trial_0(sweep_file, tmp_path, name, settings, message):
    file = sweep_file(executor={"name": "slurm", "cluster": cluster_file(tmp_path, settings, name)})
    with pytest.raises(ConfigError, match=message) as caught:
        load_sweep(file)
    assert "\n" not in str(caught.value)


def test_an_array_takes_the_cluster_that_the_sweep_names(sweep_file, tmp_path):
    named = cluster_file(tmp_path)
    file = str(sweep_file(executor={"name": "slurm", "cluster": named}))
    home = Path(load_sweep(file).folder) / "launch"
    text = launch("slurm", file, [], cluster_file=None, dry_run=True)[home / "sweep_array.sbatch"]
    assert 'words=("${words[@]:0:3}" "${words[@]:3}")' in text  # which the dry run has given their settings already
    assert all(" ".join(WORDS) in line for line in dry_run(file))
    (tmp_path / "other").mkdir()
    other = cluster_file(tmp_path / "other", ("num_microbatches=2",))
    with pytest.raises(ConfigError, match=f"executor.cluster: the settings of {named} would win"):
        launch("slurm", file, [], cluster_file=other, dry_run=True)
