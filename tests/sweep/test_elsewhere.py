"""Runs that are jobs of an engine: SkyPilot's command played by a script, SLURM by submitit's own local cluster."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from rdro_jax.errors import ConfigError, RestartWanted
from rdro_jax.sweep import executors
from rdro_jax.sweep.elsewhere import JOB_FILE, Attempt, SkyExecutor, SlurmExecutor, _SkyQueue, _written_code
from rdro_jax.sweep.run import run
from rdro_jax.sweep.runs import Run
from rdro_jax.sweep.spec import Sky, Slurm, load_sweep

STUB = (sys.executable, "-S", str(Path(__file__).with_name("stub_trial.py")))
SKY = """\
#!/bin/bash
# `sky jobs launch --yes --detach-run --name N --env RDRO_COMMAND=C --secret S TASK`, `sky jobs queue ...`
echo "$*" >> {folder}/asked
case "$2" in
  launch) (bash -c "${{8#RDRO_COMMAND=}}" > /dev/null 2>&1; echo "$6" >> {folder}/ended) & ;;
  queue) names=$(cut -d' ' -f1 {folder}/ended | sort -u); echo -n '['; first=1
    while read -r _ _ _ _ _ name _; do
      [ $first = 1 ] || echo -n ,; first=0
      state=RUNNING; grep -qx "$name" {folder}/ended && state=SUCCEEDED
      echo -n "{{\\"job_name\\": \\"$name\\", \\"status\\": \\"$state\\"}}"
    done < <(grep launch {folder}/asked); echo ']' ;;
esac
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A PATH with `rdro`, the stub, and room for other commands."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def command(name, text):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    command("rdro", f'#!/bin/bash\nexec {" ".join(STUB)} "$@"\n')
    (folder / "ended").touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("STUB_SECONDS", "0.001")
    monkeypatch.setattr(executors, "COMMAND", STUB)
    return folder, command


def states(folder):
    return [json.loads(line)["state"] for line in (folder / "results.jsonl").read_text().splitlines()]


def test_skypilot_s_jobs_are_launched_once_each(machine, sweep_file, monkeypatch, tmp_path):
    folder, command = machine
    command("sky", SKY.format(folder=folder))
    monkeypatch.setattr(_SkyQueue, "SECONDS", 0.05)
    (tmp_path / "task.yaml").write_text("{run: bash -c $RDRO_COMMAND, secrets: {TOKEN: null, OTHER: here}}")
    monkeypatch.setenv("TOKEN", "t")
    cluster = "cluster: {name: sky, accelerators: H100:8, bucket: gs://b, settings: [num_microbatches=2]}"
    (tmp_path / "cluster.yaml").write_text(cluster)
    executor = {"name": "sky", "task": str(tmp_path / "task.yaml"), "cluster": str(tmp_path / "cluster.yaml")}
    file = sweep_file(executor=executor, trials=3)
    assert states(run(file)) == ["complete"] * 3
    launches = [line for line in (folder / "asked").read_text().splitlines() if "launch" in line]
    assert len(launches) == 3
    assert all("base.yaml num_microbatches=2 " in line for line in launches)
    assert len({line.split()[5] for line in launches}) == 3
    assert all(line.split()[-3:-1] == ["--secret", "TOKEN"] for line in launches)
    run(file)
    assert launches == [line for line in (folder / "asked").read_text().splitlines() if "launch" in line]


def test_slurm_s_jobs_are_submitit_s(machine, sweep_file, monkeypatch):
    pytest.importorskip("submitit")
    _, command = machine
    command("sbatch", "#!/bin/bash\n")
    monkeypatch.setattr("rdro_jax.sweep.elsewhere.CLUSTER", "local")
    file = sweep_file(executor={"name": "slurm", "options": {"slurm_partition": "gpu"}}, trials=1)
    folder = run(file)
    assert states(folder) == ["complete"]
    assert json.loads((folder / "trials" / "0000" / JOB_FILE).read_text())["slurm"]


@pytest.mark.parametrize(("code", "seconds"), [(42, 0.3), (0, 0)])
def test_a_job_that_was_told_to_stop_waits_to_be_requeued(tmp_path, monkeypatch, code, seconds):
    """The one that ends first would be submitted again, beside the one that SLURM requeues."""
    waited = []
    monkeypatch.setattr("rdro_jax.sweep.elsewhere.TAKEN_AWAY_SECONDS", 0.3)
    monkeypatch.setattr("rdro_jax.sweep.elsewhere.time.sleep", waited.append)
    assert Attempt(Run(0, None, tmp_path, ()), ["bash", "-c", f"exit {code}"], {})() == code
    assert sum(waited) == seconds


@pytest.mark.timeout(20)
def test_a_job_out_of_time_waits_for_its_run_to_save(tmp_path):
    """As submitit does: its handler asks for the checkpoint in the middle of the wait for the run."""
    script = f"trap 'touch {tmp_path}/saved; exit 42' TERM; touch {tmp_path}/up; while :; do sleep 0.05; done"
    attempt = Attempt(Run(0, None, tmp_path, ()), ["bash", "-c", script], {})

    def requeue(*_):
        attempt.checkpoint()
        raise InterruptedError

    def interrupt():
        while not (tmp_path / "up").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, requeue)
    threading.Thread(target=interrupt).start()
    with pytest.raises(InterruptedError):
        attempt()
    signal.signal(signal.SIGUSR2, before)
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize(("written", "code"), [("42\n", 42), ("3", 3), ("", 137), (None, 137)])
def test_a_job_that_left_no_word_was_killed(tmp_path, written, code):
    job = Run(0, None, tmp_path, ())
    if written is not None:
        (tmp_path / "exit_code").write_text(written)
    assert _written_code(job) == code


def test_what_is_missing_is_told_before_trial_0(sweep_file, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"executor\.name: sky needs SkyPilot's command"):
        run(sweep_file(executor={"name": "sky", "task": "t.yaml"}))
    with pytest.raises(ConfigError, match=r"executor\.name: slurm needs sbatch"):
        run(sweep_file(executor={"name": "slurm"}))
    (tmp_path / "sky").touch(mode=0o755)
    (tmp_path / "t.yaml").write_text("secrets: {NOT_SET: null}")
    with pytest.raises(ConfigError, match=r"t\.yaml: secrets: NOT_SET is not in the environment"):
        run(sweep_file(executor={"name": "sky", "task": str(tmp_path / "t.yaml")}))


def test_what_sky_says_is_one_line(machine, tmp_path):
    _, command = machine
    command("sky", "#!/bin/bash\necho no cloud is enabled >&2\nexit 1\n")
    (tmp_path / "task.yaml").write_text("run: echo")
    with pytest.raises(ConfigError, match="sky jobs launch: no cloud is enabled"):
        SkyExecutor(Sky("sky", str(tmp_path / "task.yaml")), tmp_path).start(
            Run(0, None, tmp_path / "r", ("train",)), 0
        )


def test_a_sweep_elsewhere_is_left_going_when_its_coordinator_stops(machine, sweep_file, monkeypatch, tmp_path):
    folder, command = machine
    command("sky", SKY.format(folder=folder))
    monkeypatch.setattr(_SkyQueue, "SECONDS", 0.05)
    monkeypatch.setenv("STUB_SECONDS", "0.1")
    (tmp_path / "task.yaml").write_text("run: bash -c $RDRO_COMMAND")
    file = sweep_file(executor={"name": "sky", "task": str(tmp_path / "task.yaml")}, trials=1)
    steps = load_sweep(file).folder / "trials" / "0000" / "steps.log"

    def interrupt():
        while not steps.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    with pytest.raises(RestartWanted):
        run(file)
    assert states(run(file)) == ["complete"]
    assert steps.read_text().split() == [*map(str, range(1, 13))]
    asked = [line.split()[1] for line in (folder / "asked").read_text().splitlines()]
    assert (asked.count("launch"), asked.count("cancel")) == (1, 0)


def test_a_question_that_sky_does_not_answer_is_asked_again(machine, monkeypatch, capsys):
    folder, command = machine
    monkeypatch.setattr(_SkyQueue, "SECONDS", 0.0)
    monkeypatch.setattr(_SkyQueue, "UNANSWERED", 2)
    command("sky", f"#!/bin/bash\ncat {folder}/answer\n")
    queue, answer = _SkyQueue(), folder / "answer"
    with pytest.raises(ConfigError, match="sky jobs queue"):  # a run that goes on must not be taken for one that ended
        queue.end_of("a")
    jobs = [("a", "ManagedJobStatus.RUNNING"), ("b", "SUCCEEDED"), ("a", "FAILED")]  # the newest first
    answer.write_text(json.dumps([{"job_name": name, "status": status} for name, status in jobs]))
    assert [queue.end_of(name) for name in "abc"] == [None, "SUCCEEDED", "SUCCEEDED"]
    answer.unlink()
    queue.expect("b")
    assert [queue.end_of(name) for name in "ab"] == [None, None]
    assert capsys.readouterr().err.count("asked again") == 2
    with pytest.raises(ConfigError, match="sky jobs queue"):
        queue.end_of("a")


@pytest.mark.timeout(60)
def test_a_job_whose_launch_outlived_the_coordinator_is_not_launched_again(machine, sweep_file, monkeypatch, tmp_path):
    """The coordinator is killed -9 in the middle of `sky jobs launch`, which takes minutes and goes on."""
    folder, command = machine
    slow = SKY.replace("launch) (", "launch) touch {folder}/launching; sleep 2; (")
    # SkyPilot knows of a job when the launch is nearly over.
    command(
        "sky",
        slow.replace('echo "$*" >> {folder}/asked', "")
        .format(folder=folder)
        .replace("sleep 2;", f'sleep 2; echo "$*" >> {folder}/asked;'),
    )
    (folder / "asked").touch()
    monkeypatch.setattr(_SkyQueue, "SECONDS", 0.05)
    (tmp_path / "task.yaml").write_text("run: bash -c $RDRO_COMMAND")
    file = sweep_file(executor={"name": "sky", "task": str(tmp_path / "task.yaml")}, trials=1)
    first = os.fork()
    if first == 0:
        run(file)
        os._exit(0)
    while not (folder / "launching").exists():
        time.sleep(0.01)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert states(run(file)) == ["complete"]
    assert (folder / "asked").read_text().count("jobs launch") == 1


@pytest.mark.parametrize("state", ["FAILED_SETUP", "FAILED_PRECHECKS", "FAILED_NO_RESOURCE", "CANCELLED"])
def test_a_job_that_never_ran_is_a_failed_trial(machine, sweep_file, monkeypatch, tmp_path, state):
    folder, command = machine
    text = (
        SKY.format(folder=folder).replace("(bash -c", "(true; : bash -c").replace("state=SUCCEEDED", f"state={state}")
    )
    command("sky", text)
    monkeypatch.setattr(_SkyQueue, "SECONDS", 0.05)
    (tmp_path / "task.yaml").write_text("run: bash -c $RDRO_COMMAND")
    sweep = run(sweep_file(executor={"name": "sky", "task": str(tmp_path / "task.yaml")}, trials=1))
    assert states(sweep) == ["fail"]
    assert json.loads((sweep / "results.jsonl").read_text())["why"].startswith(f"SkyPilot: {state}; sky jobs logs")
    assert (folder / "asked").read_text().count("jobs launch") == 1


def test_slurm_s_job_is_found_by_its_name_and_requeued_without_end(machine, tmp_path):
    pytest.importorskip("submitit")
    folder, command = machine
    command("sbatch", "#!/bin/bash\n")
    command("squeue", f'#!/bin/bash\necho "$*" >> {folder}/asked\necho 6\necho 7\n')
    executor = SlurmExecutor(Slurm("slurm"), tmp_path)
    assert executor._executor._executor.max_num_timeout >= 1000
    trial = Run(0, None, tmp_path / "trials" / "0000", ())
    assert executor.find(trial) is None
    trial.folder.mkdir(parents=True)
    (trial.folder / JOB_FILE).write_text('{"slurm": null}')  # killed while it submitted
    assert executor.find(trial) is None  # 6 and 7 have nothing to run
    (tmp_path / "slurm" / "7_submitted.pkl").touch()
    assert executor.find(trial) is not None
    assert json.loads((trial.folder / JOB_FILE).read_text()) == {"slurm": "7"}
    assert "trials-0000" in (folder / "asked").read_text()
