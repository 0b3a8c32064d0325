"""`rdro launch`: the files of launch/ are what the templates give, and hold what a launcher must; no network, no cloud.

`make launch-check` gives the same files to the validators of each engine.
"""

import dataclasses
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
RENDER = importlib.import_module("rdro_jax.launch.render")
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


def run_with_standins(script, folder, words=(), **programs):
    """Run a script of launch/ whose programs are these lines of bash; what it did, and every call of a program."""
    import subprocess

    for name, does in programs.items():
        (folder / name).write_text(f'#!/bin/bash\necho "{name} $*" >>{folder}/calls\n{does}\n')
        (folder / name).chmod(0o755)
    (folder / "calls").touch()
    path = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(
        ["bash", script, *words], cwd=folder, env=path, capture_output=True, text=True, check=False, timeout=20
    )
    return done, (folder / "calls").read_text()


@pytest.mark.parametrize(
    ("state", "words", "ships", "deletes", "creates"),
    [
        ("", [], True, False, True),
        ("SUSPENDED", [], True, True, True),
        ("SUSPENDED", ["--replace"], False, True, True),
        ("FAILED", ["--replace"], False, True, True),
        ("", ["--replace"], False, False, False),
        ("ACTIVE", [], False, False, False),
        ("PROVISIONING", ["--replace"], False, False, False),
    ],
)
def test_tpu_machines_are_queued_for_and_replaced(tmp_path, state, words, ships, deletes, creates):
    """With a stand-in for gcloud, in a working directory with a file git does not know and one it ignores."""
    import subprocess

    for name in ("create.sh", "run.sh", "start.sh", "delete.sh"):
        (tmp_path / name).write_text((ROOT / "launch" / "tpu_vm" / name).read_text())
    (tmp_path / ".gitignore").write_text("ignored\n")
    for name in ("known", "gone", "ignored", "new row.jsonl"):
        (tmp_path / name).touch()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in ("init -q", "add known gone", "commit -q -m first"):
        subprocess.run([*git, *command.split()], cwd=tmp_path, check=True)
    (tmp_path / "gone").unlink()
    gcloud = f"""case "$*" in
      *describe*) [ -n "{state}" ] || exit 1; echo "{state}" ;;
      *"cp - "*) cat >{tmp_path}/shipped ;;
    esac"""
    done, calls = run_with_standins(tmp_path / "create.sh", tmp_path, words, gcloud=gcloud)
    assert done.returncode == 0, done.stderr
    assert ("run.sh gs://my-bucket/rdro-runs/launch/rdro-first/run.sh" in calls) == ships
    assert ("queued-resources delete rdro-first" in calls) == deletes
    assert (f"--metadata-from-file=startup-script={tmp_path}/start.sh" in calls) == creates
    if ships:
        shipped = subprocess.run(["tar", "-tzf", tmp_path / "shipped"], capture_output=True, text=True, check=True)
        assert {"known", "new row.jsonl"} <= {*shipped.stdout.splitlines()}
        assert "ignored" not in shipped.stdout.splitlines()


@pytest.mark.parametrize(
    ("codes", "starts", "code"), [("0", 1, 0), ("42 137 0", 3, 0), ("42 5", 2, 5), ("137 " * 25, 21, 137)]
)
def test_a_tpu_host_starts_again_by_the_table_and_gives_its_machines_back(tmp_path, codes, starts, code):
    (tmp_path / "runs/launch/rdro-first").mkdir(parents=True)
    (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
    rdro = f"code=$(head -n 1 {tmp_path}/codes); sed -i 1d {tmp_path}/codes; exit $code"
    nothing = {"gcloud": "", "journalctl": "echo told", "curl": "echo 0"}
    done, calls = run_with_standins(ROOT / "launch/tpu_vm/run.sh", tmp_path, rdro=rdro, **nothing)
    assert (done.returncode, calls.count("rdro train")) == (code, starts)
    assert "gcloud compute tpus queued-resources delete rdro-first" in calls
    assert (tmp_path / "runs/launch/rdro-first/log.txt").read_text() == "told\n"


def test_a_tpu_host_that_goes_down_is_not_started_again_nor_given_back(tmp_path):
    done, calls = run_with_standins(
        ROOT / "launch/tpu_vm/run.sh", tmp_path, rdro="kill -TERM $PPID; exit 42", gcloud="", curl="echo 0"
    )
    assert (done.returncode, calls) == (42, calls[: calls.index("\n") + 1])


def test_a_tpu_host_mounts_the_bucket_and_starts_the_unit(tmp_path):
    """gcsfuse takes the name of a bucket, and a folder in it by --only-dir."""
    script = (ROOT / "launch/tpu_vm/start.sh").read_text().replace("/opt/rdro", str(tmp_path / "rdro"))
    (tmp_path / "start.sh").write_text(script)
    names = ("gcsfuse", "tar", "uv", "systemd-run")
    done, calls = run_with_standins(tmp_path / "start.sh", tmp_path, **dict.fromkeys(names, ""), mountpoint="exit 1")
    assert done.returncode == 0, done.stderr
    assert "gcsfuse --implicit-dirs --only-dir rdro-runs my-bucket runs\n" in calls
    assert re.search(r"uv venv .*--python 3.11 .*\nuv pip install .*'?jax\[tpu\]", calls)
    assert re.search(r"systemd-run --unit=rdro .*bash runs/launch/rdro-first/run.sh\n$", calls)
    cluster = dataclasses.replace(load_cluster(CLUSTERS / "tpu-vm.yaml"), bucket="gs://bare")
    assert "gcsfuse --implicit-dirs bare runs\n" in render("tpu-vm", cluster, examples.RUN)["start.sh"]


NOT_SHIPPED = {
    "config: '/.*run.yaml' does not reach the machines: wanted a path below the working directory": ({}, "absolute"),
    "model.path: 'm' does not reach the machines: it is not there": ({}, "run.yaml"),
    "model.path: 'kept' does not reach the machines: git ignores it": ({"model": {"path": "kept"}}, "run.yaml"),
    "data.train: '../t' does not reach the machines: wanted": (
        {"model": {"path": "runs/m"}, "data": {"train": "../t"}},
        "run.yaml",
    ),
}


@pytest.mark.parametrize("message", NOT_SHIPPED)
@pytest.mark.parametrize("engine", ["sky", "tpu-vm"])
def test_what_would_not_reach_the_machines_is_refused_before_they_cost(config_file, monkeypatch, engine, message):
    import subprocess

    changes, file = NOT_SHIPPED[message]
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | changes))
    monkeypatch.chdir(config_file.parent)
    Path("kept").mkdir()
    Path(".gitignore").write_text("kept\n")
    subprocess.run(["git", "init", "-q"], check=True)
    monkeypatch.setattr(RENDER, "_submit", lambda command: pytest.fail(str(command)))
    path = str(config_file) if file == "absolute" else file
    with pytest.raises(ConfigError, match=message):
        launch(engine, path, [], cluster_file=str(CLUSTERS / f"{engine}.yaml"), dry_run=False)


def test_launching_on_gke_again_goes_on(config_file, monkeypatch):
    """kubectl apply would find the ended JobSet of that name as it should be, and do nothing."""
    monkeypatch.chdir(config_file.parent)
    monkeypatch.setattr("subprocess.run", lambda command, check: None)
    submitted = launch("gke", "run.yaml", [], cluster_file=str(CLUSTERS / "gke-tpu.yaml"), dry_run=False)
    assert submitted == ["kubectl", "replace", "--force", "-f", "runs/My Run!/launch/jobset.yaml"]


@pytest.mark.parametrize("path", sorted(CLUSTERS.glob("gke-*.yaml")), ids=lambda path: path.stem)
def test_kueue_has_a_flavour_and_the_quota_for_each_gke_cluster_file(path):
    """A JobSet whose node labels no flavour has is never admitted."""
    objects = list(yaml.safe_load_all((ROOT / "launch/gke/kueue.yaml").read_text()))
    [queue] = [each["spec"] for each in objects if each["kind"] == "ClusterQueue"]
    cluster = load_cluster(path)
    job = yaml.safe_load(render("gke", cluster, examples.RUN)["jobset.yaml"])["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]["spec"]
    flavours = [
        each["metadata"]["name"]
        for each in objects
        if each["kind"] == "ResourceFlavor" and each["spec"]["nodeLabels"] == pod["nodeSelector"]
    ]
    [(resource, count)] = pod["containers"][0]["resources"]["limits"].items()
    quotas = [
        each["nominalQuota"]
        for group in queue["resourceGroups"]
        for flavour in group["flavors"]
        for each in flavour["resources"]
        if flavour["name"] in flavours and each["name"] == resource
    ]
    assert quotas, f"no flavour of {resource} has {pod['nodeSelector']}"
    assert quotas[0] >= count * cluster.hosts * cluster.slices


def test_a_sweep_becomes_an_array_of_its_runs(tmp_path, monkeypatch):
    (tmp_path / "base.yaml").write_text(
        "{output_dir: a, model: {path: b}, data: {train: t, eval: e}, loss: {name: rdro}}"
    )
    sweep = {"base": "base.yaml", "output_dir": "runs/s", "sampler": {"name": "grid"}, "seeds": [1, 2]}
    sweep |= {"space": {"loss": {"rdro": {"alpha": {"choice": [0.3, 0.4]}}, "dpo": {}}}}
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps(sweep))
    files = launch("slurm", str(file), [], cluster_file=str(CLUSTERS / "slurm.yaml"), dry_run=True)
    text = files[Path("runs/s/launch/sweep_array.sbatch")]
    assert "#SBATCH --array=1-6%8" in text
    assert 'words=("${words[@]:0:3}" model.remat=full num_microbatches=1 "${words[@]:3}")' in text
    cluster = yaml.safe_load((CLUSTERS / "slurm.yaml").read_text())
    cluster["cluster"]["settings"] = ["num_micro_batches=1"]
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    with pytest.raises(ConfigError, match="did you mean 'num_microbatches'"):
        launch("slurm", str(file), [], cluster_file=str(tmp_path / "cluster.yaml"), dry_run=True)
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
    Path("m").mkdir()
    Path("t.jsonl").touch()
    monkeypatch.setattr(RENDER, "_submit", lambda command: command)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"task\.yaml: secrets: HF_TOKEN is not in the environment"):
        launch("sky", "run.yaml", [], cluster_file=str(CLUSTERS / "sky.yaml"), dry_run=False)
    monkeypatch.setenv("HF_TOKEN", "t")
    submitted = launch("sky", "run.yaml", [], cluster_file=str(CLUSTERS / "sky.yaml"), dry_run=False)
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
