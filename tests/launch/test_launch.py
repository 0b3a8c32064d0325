"""`rdro launch`: the files of launch/ are what the templates give, and hold what a launcher must; no network, no cloud.

`make launch-check` gives the same files to the validators of each engine.
"""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from rdro_jax import cli
from rdro_jax.errors import ConfigError
from rdro_jax.launch import launch, load_cluster, render

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "configs" / "clusters"
spec = importlib.util.spec_from_file_location("launch_examples", ROOT / "launch" / "render.py")
examples = importlib.util.module_from_spec(spec)
spec.loader.exec_module(examples)


@pytest.fixture
def config_file(tmp_path):
    run = {"output_dir": "runs/My Run!", "model": {"path": "m"}, "data": {"train": "t.jsonl"}, "loss": {"name": "rdro"}}
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    return tmp_path / "run.yaml"


@pytest.mark.parametrize("name", examples.EXAMPLES)
def test_examples_are_what_the_templates_give(name):
    assert (ROOT / "launch" / name).read_text() == examples.example(name), "python launch/render.py writes it anew"


def test_every_cluster_file_loads_and_renders():
    for path in CLUSTERS.glob("*.yaml"):
        cluster = load_cluster(path)
        assert all(render(cluster.name, cluster, examples.RUN).values())


@pytest.mark.parametrize("engine", ["slurm", "gke", "sky", "tpu-vm"])
def test_dry_run_prints_the_run_s_command(config_file, capsys, monkeypatch, engine):
    monkeypatch.chdir(ROOT)
    assert cli.main(["launch", engine, str(config_file), "loss.alpha=0.3", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"rdro train {config_file}( [\w.]+=[\w.]+)* loss.alpha=0.3\W", text)
    assert "rdro-my-run" in text
    assert not Path("runs/My Run!").exists()


def test_words_reach_the_shell_as_they_were_typed(config_file):
    """An override with quotes, spaces and a dollar: what bash would read is the very same words."""
    words = ["data.train=my 'rows' $HOME.jsonl"]
    files = launch("slurm", str(config_file), words, cluster_file=str(CLUSTERS / "slurm.yaml"), dry_run=True)
    [line] = [line for line in next(iter(files.values())).splitlines() if line.startswith("srun")]
    settings = load_cluster(CLUSTERS / "slurm.yaml").settings
    assert shlex.split(line)[2:] == ["rdro", "train", str(config_file), *settings, *words]
    files = launch("gke", str(config_file), words, cluster_file=str(CLUSTERS / "gke-gpu.yaml"), dry_run=True)
    [job] = yaml.safe_load(next(iter(files.values())))["spec"]["replicatedJobs"]
    [container] = job["template"]["spec"]["template"]["spec"]["containers"]
    settings = load_cluster(CLUSTERS / "gke-gpu.yaml").settings
    assert shlex.split(container["command"][2])[1:] == ["rdro", "train", str(config_file), *settings, *words]
    with pytest.raises(ConfigError, match="line break"):
        launch("sky", str(config_file), ["seed=3\n"], cluster_file=str(CLUSTERS / "sky.yaml"), dry_run=True)


def test_codes_are_restarted_by_the_table():
    """42 and deaths by a signal are; 2 to 6 and 70 never. What bash makes of the script's own condition is asked."""
    import subprocess

    for name in ("slurm/train.sbatch", "slurm/sweep_array.sbatch"):
        text = (ROOT / "launch" / name).read_text()
        [condition] = re.findall(r"^if (\[ \"\$code\" -eq 42.*); then", text, re.M)
        for code, deaths, wanted in (
            (42, 99, 0),
            (137, 0, 0),
            (137, 20, 1),
            (2, 0, 1),
            (6, 0, 1),
            (70, 0, 1),
            (0, 0, 1),
        ):
            script = f"code={code}; deaths={deaths}; MOST_DEATHS=20; {condition}"
            assert subprocess.run(["bash", "-c", script], check=False).returncode == wanted, (name, code, deaths)


@pytest.mark.parametrize(("state", "code"), [("ACTIVE", 0), ("FAILED", 1), ("SUSPENDING", 1)])
def test_a_tpu_that_will_not_come_is_not_waited_for(tmp_path, state, code):
    """The example, run with stand-ins for gcloud, git and sleep; the first question finds no answer yet."""
    import subprocess

    state_file, script = tmp_path / "asked", tmp_path / "create.sh"
    script.write_text((ROOT / "launch" / "tpu_vm" / "create.sh").read_text())
    (tmp_path / "run.sh").touch()
    gcloud = f'case "$*" in *describe*) [ -e {state_file} ] && echo {state}; touch {state_file} ;; esac'
    for name, does in (("gcloud", gcloud), ("git", ""), ("sleep", "")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["bash", script], env=path, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == code, done.stderr
    assert (f"rdro-first: {state}; bash {tmp_path}/delete.sh" in done.stderr) == bool(code)


def test_a_sweep_becomes_an_array_of_its_runs(tmp_path, monkeypatch):
    (tmp_path / "base.yaml").write_text(
        "{output_dir: a, model: {path: b}, data: {train: t, eval: e}, loss: {name: rdro}}"
    )
    sweep = {"base": "base.yaml", "output_dir": "runs/s", "sampler": {"name": "grid"}, "seeds": [1, 2]}
    sweep |= {"space": {"loss": {"rdro": {"alpha": {"choice": [0.3, 0.4]}}, "dpo": {}}}}
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps(sweep))
    files = launch("slurm", str(file), [], cluster_file=str(CLUSTERS / "slurm.yaml"), dry_run=True)
    assert "#SBATCH --array=1-6%8" in files[Path("runs/s/launch/sweep_array.sbatch")]
    with pytest.raises(ConfigError, match="'rdro sweep' launches the trials"):
        launch("sky", str(file), [], cluster_file=str(CLUSTERS / "sky.yaml"), dry_run=False)
    with pytest.raises(ConfigError, match="no sweeps there"):
        launch("gke", str(file), [], cluster_file=str(CLUSTERS / "gke-tpu.yaml"), dry_run=True)
    file.write_text(json.dumps(sweep | {"sampler": {"name": "tpe"}, "trials": 30}))
    with pytest.raises(ConfigError, match="later points depend on results"):
        launch("slurm", str(file), [], cluster_file=str(CLUSTERS / "slurm.yaml"), dry_run=True)


FAULTS = {
    "cluster.nodez: unknown key; did you mean 'nodes'?": ("slurm", {"nodez": 2}),
    'cluster.partition: got "a b; rm -rf /"': ("slurm", {"partition": "a b; rm -rf /"}),
    "cluster.topology: wanted with device: tpu": ("gke-gpu", {"topology": "4x4"}),
    "cluster.slices: got 2; only TPUs come in slices": ("gke-gpu", {"slices": 2}),
    'cluster.bucket: got "here"': ("sky", {"bucket": "here"}),
    'cluster.secrets.0: got "hf_abc"': ("sky", {"secrets": ["hf_abc"]}),
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_of_a_cluster_file_are_one_line(tmp_path, message):
    name, keys = FAULTS[message]
    cluster = yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text())
    cluster["cluster"] |= keys
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster))
    with pytest.raises(ConfigError) as caught:
        load_cluster(file)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(file))


def test_the_engine_must_be_the_cluster_s(config_file):
    with pytest.raises(ConfigError, match="got 'slurm'; wanted 'gke'"):
        launch("gke", str(config_file), [], cluster_file=str(CLUSTERS / "slurm.yaml"), dry_run=True)


def test_what_an_engine_says_is_one_line(config_file, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(config_file.parent)
    with pytest.raises(ConfigError, match="no command 'sbatch' on this machine"):
        launch("slurm", str(config_file), [], cluster_file=str(CLUSTERS / "slurm.yaml"), dry_run=False)
    assert Path("runs/My Run!/launch/train.sbatch").exists()


def test_sky_is_told_the_secrets_by_name(config_file, monkeypatch):
    """SkyPilot refuses a task whose secrets have no value."""
    monkeypatch.chdir(config_file.parent)
    monkeypatch.setattr("subprocess.run", lambda command, check: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"task\.yaml: secrets: HF_TOKEN is not in the environment"):
        launch("sky", str(config_file), [], cluster_file=str(CLUSTERS / "sky.yaml"), dry_run=False)
    monkeypatch.setenv("HF_TOKEN", "t")
    submitted = launch("sky", str(config_file), [], cluster_file=str(CLUSTERS / "sky.yaml"), dry_run=False)
    assert submitted[-3:] == ["runs/My Run!/launch/task.yaml", "--secret", "HF_TOKEN"]


def test_no_file_holds_a_secret():
    for path in (ROOT / "launch").rglob("*.*"):
        assert not re.search(r"hf_[A-Za-z0-9]{8}|AKIA[A-Z0-9]{12}|-----BEGIN", path.read_text()), path


def test_the_readme_names_every_file_and_cluster():
    readme = (ROOT / "launch" / "README.md").read_text()
    for path in [*(ROOT / "launch").rglob("*.*"), *CLUSTERS.glob("*.yaml")]:
        assert path.name in readme or path.name == "README.md", path


def test_job_labels_fit_kubernetes():
    from rdro_jax.launch.render import _label

    assert [_label(f"runs/{name}") for name in ("a_B c", "x" * 60, "!!")] == ["rdro-a-b-c", "rdro-" + "x" * 30, "rdro"]


PLANNED = [path for path in CLUSTERS.glob("*.yaml") if load_cluster(path).topology_to_plan]


@pytest.mark.parametrize("path", PLANNED, ids=lambda path: path.stem)
def test_settings_of_a_cluster_fit_its_machine_by_the_plan(path, monkeypatch):
    """The largest model the settings are meant for; the figure of the file's header is the plan's."""
    from rdro_jax.config import load_config
    from rdro_jax.plan import make_plan, parse_topology, verdict

    monkeypatch.chdir(ROOT)
    cluster = load_cluster(path)
    model = "qwen2.5-0.5b" if cluster.topology_to_plan == "cpu:1" else "llama-3.1-8b"
    config = load_config("configs/rdro.yaml", [f"model.path=configs/models/{model}.yaml", *cluster.settings])
    plan = make_plan(config, parse_topology(cluster.topology_to_plan), compiling=False)
    [(peak, of)] = re.findall(r"([\d.]+)(?: of ([\d.]+))? GiB", verdict(plan))
    if not of:  # a CPU has the memory of its node
        of = f"{cluster.memory_gb * 1e9 / 2**30:.2f}"
    assert float(peak) * 1.1 < float(of), "the estimate may be wrong by a tenth"
    assert f"by its estimate {peak} of {of} GiB of a " in path.read_text()


def test_a_cluster_s_settings_come_before_the_user_s(config_file):
    files = launch("sky", str(config_file), ["seed=3"], cluster_file=str(CLUSTERS / "sky.yaml"), dry_run=True)
    assert "model.remat=full num_microbatches=1 seed=3\n" in next(iter(files.values()))
