"""The short form: several real processes, a kill, a restart, and nothing secret in what they write."""

import re
import shutil
import signal
import time
from contextlib import suppress
from functools import partial

import pyarrow
import pytest
from faults import inject
from faults.driver import Home, assert_same_run, same, start, state, train, until

from rdro_jax.checkpoint import checkpoint_path, list_steps

pytestmark = pytest.mark.timeout(1200)  # a crowded machine takes minutes over what takes seconds

CANARY = "canary-9f31c2"
SECRETS = {
    name: f"{CANARY}-{name.lower()}"
    for name in (
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GITHUB_TOKEN"),
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY", "GOOGLE_API_KEY"),
        *("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "COMET_API_KEY", "NEPTUNE_API_TOKEN", "KAGGLE_KEY"),
        *("SLURM_JWT", "DATABASE_PASSWORD", "DATABASE_URL", "PIP_INDEX_URL"),
    )
}


@pytest.fixture(scope="module")
def alone(home):
    """One process with two devices, and secrets in its environment."""
    run = Home(home, home / "alone")
    started = train(run, devices=2, environ=SECRETS)
    assert started.wait() == [0], started.told()
    return run, started


@pytest.fixture(scope="module")
def together(home):
    """Two processes with one device each: they score the reference themselves, and the first waits at the end."""
    shutil.rmtree(home / "store", ignore_errors=True)
    run = Home(home, home / "together")
    started = train(run, processes=2, inject=partial(inject.late_to_leave, 1))
    assert started.wait() == [0, 0], started.told()
    return run, started


def test_two_processes_are_one_run(alone, together, measured):
    """One writer, one voice."""
    run, started = together
    measured(f"2 x 1 devices beside 1 x 2: losses differ by {assert_same_run(alone[0], run):.1e} at most")
    assert "training step" in started.logs[0].read_text()
    silent = [line for line in started.logs[1].read_text().splitlines() if not line.startswith("[Gloo]")]
    assert silent == []


def test_when_one_is_killed_the_others_end_and_a_restart_goes_on(home, together, measured):
    run = Home(home, home / "killed")
    started = train(run, processes=2)
    until(lambda: list_steps(run.run), started)
    started.send(signal.SIGKILL, 1)
    killed = time.monotonic()
    code, _ = started.wait(90)
    assert code in (42, -signal.SIGABRT), started.told()  # its own word, or JAX's for a heartbeat that is missed
    seconds = time.monotonic() - killed
    measured(f"kill -9 of one of two: the other ended with {code} after {seconds:.1f} s")
    assert seconds < 45
    again = train(run, processes=2)
    assert again.wait() == [0, 0], again.told()
    assert "resuming after step" in again.told()
    assert same(run.run, together[0].run)
    assert state(run.run, 12) != state(run.run, 9)


def told_by(file):
    """The bytes of a file, and what lies compressed in them: orbax stores arrays and trees of names by zstd."""
    raw = file.read_bytes()
    found = [raw]
    for at in re.finditer(re.escape(b"\x28\xb5\x2f\xfd"), raw):
        stream = pyarrow.CompressedInputStream(pyarrow.BufferReader(raw[at.start() :]), "zstd")
        with suppress(OSError):  # behind the frame, or not the beginning of one after all
            while block := stream.read(1):  # more at once would be lost with what is behind the frame
                found.append(block)
    return b"".join(found)


def test_no_secret_is_written(home, alone, measured):
    run, started = alone
    others = [
        start("doctor", run.config, logs=home, environ=SECRETS),
        start("report", str(run.run), logs=home, environ=SECRETS),
        train(Home(home, home / "bug"), environ=SECRETS, inject=inject.a_bug),
        train(Home(home, home / "stuck"), "step_timeout=5", environ=SECRETS, inject=partial(inject.stuck_in_python, 2)),
    ]
    assert [other.wait() for other in others] == [[0], [0], [70], [-signal.SIGABRT]]
    logs = [log for each in (started, *others) for log in each.logs]
    written = [file for file in (*home.rglob("*"), *logs) if file.is_file()]
    assert {"report.html", "stacks-0.txt"} <= {file.name for file in written}
    assert len(written) > 60
    # What is looked for would be found: a word that the config holds is, in a log, a page and a checkpoint.
    assert {b"learning_rate" in told_by(file) for file in written if file.name == "report.html"} == {True}
    assert any(b"kernel" in told_by(file) for file in checkpoint_path(run.run, 12).rglob("*") if file.is_file())
    (planted := home / "planted.zst").write_bytes(pyarrow.compress(CANARY.encode(), "zstd", asbytes=True))
    assert [file for file in (*written, planted) if CANARY.encode() in told_by(file)] == [planted]
    measured(f"{len(SECRETS)} canaries in the environment: 0 hits in {len(written)} files")
