"""What trackers are told, with stand-ins for the services, and TensorBoard's own file read back."""

import io
import json
import sys
import threading
import types

import pytest

from rdro_jax.errors import ConfigError
from rdro_jax.train import trackers
from rdro_jax.train.trackers import Told, Tracker, Trackers, check_trackers

CONFIG = {"loss.name": "rdro", "seed": 42}


class Service(types.ModuleType):
    """A module that answers every call, and remembers it."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **named: self.calls.append((name, args, named)) or self


@pytest.mark.parametrize(
    ("name", "opened", "log", "closed"),
    [
        ("wandb", ["init"], "log", "finish"),
        ("trackio", ["init"], "log", "finish"),
        ("mlflow", ["set_experiment", "start_run", "log_params"], "log_metrics", "end_run"),
    ],
)
def test_services_get_config_numbers_and_an_end(monkeypatch, tmp_path, name, opened, log, closed):
    service = Service(name)
    monkeypatch.setitem(sys.modules, name, service)
    monkeypatch.setenv("RDRO_PROJECT", "mine")
    monkeypatch.setenv("WANDB_API_KEY", "key")
    live = Trackers([name], Told(tmp_path / "first", CONFIG, 0))
    live.write(3, {"loss": 1.5, "rewards/chosen": None})
    live.close()
    assert [call[0] for call in service.calls] == [*opened, log, closed]
    assert service.calls[-2] == (log, ({"loss": 1.5},), {"step": 3})
    told = str(service.calls[: len(opened)])
    assert all(word in told for word in ("'mine'", "'first'", "'loss.name': 'rdro'"))


def read_events(file):
    events, data, found = pytest.importorskip("tensorboardX.proto.event_pb2"), file.read_bytes(), []
    while data:  # TFRecord: length, its checksum, the event, its checksum
        length = int.from_bytes(data[:8], "little")
        found.append(events.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_tensorboard_files_hold_every_number(tmp_path):
    """Written at once, by no thread beside the tracker's own."""
    before = set(threading.enumerate())
    live = Trackers(["tensorboard"], Told(tmp_path, CONFIG, 0))
    live.write(1, {"loss": 1.5, "grad_norm": None})
    live.write(2, {"loss": 1.25, "tokens": 7})
    assert len(set(threading.enumerate()) - before) == 1  # others may end meanwhile
    (file,) = (tmp_path / "tensorboard").iterdir()
    head, *events = read_events(file)
    assert head.file_version == "brain.Event:2"
    found = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    assert found == [(1, "loss", 1.5), (2, "loss", 1.25), (2, "tokens", 7)]
    live.close()


def test_tensorboard_forgets_steps_that_are_done_again(tmp_path):
    """A session that starts at a step makes it drop what earlier files say of that step and later ones."""
    Trackers(["tensorboard"], Told(tmp_path, CONFIG, 6)).close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    _, start = read_events(file)
    assert (start.step, start.session_log.status) == (7, start.session_log.START)


def test_json_lines_on_stdout_are_for_machines(tmp_path, capsys):
    check_trackers(["json"])
    live = Trackers(["json"], Told(tmp_path, CONFIG, 0))
    live.write(3, {"loss": 1.5, "rewards/chosen": None})
    live.write(4, {"eval_loss": 1})
    live.close()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"step": 3, "loss": 1.5}, {"step": 4, "eval_loss": 1.0}]


def test_a_tracker_without_its_package_is_refused_before_the_run(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="report_to: wandb needs the package wandb"):
        check_trackers(["wandb"])


def test_a_tracker_that_hangs_is_let_go(monkeypatch, tmp_path, capsys):
    """As a service does whose network swallows packets."""
    seen = []
    hanging = Tracker(
        lambda step, numbers: seen.append(step) or threading.Event().wait(), lambda: seen.append("closed")
    )
    monkeypatch.setitem(trackers.OPENERS, "wandb", lambda told: hanging)
    monkeypatch.setattr(trackers, "PATIENCE", 0.05)
    live = Trackers(["wandb"], Told(tmp_path, CONFIG, 0))
    for step in (1, 2):
        live.write(step, {"loss": 1.5})
    live.close()
    assert seen == [1]
    assert "report_to: wandb: no answer for 0.05 s; the run goes on without it" in capsys.readouterr().err


class Terminal(io.StringIO):
    """A terminal at which nobody sits: a question would wait for ever."""

    def isatty(self):
        return True

    def read(self, *_):
        pytest.fail("somebody was asked")

    readline = read


def test_without_a_key_nobody_is_asked_and_the_run_goes_on(monkeypatch, tmp_path, capsys):
    service = Service("wandb")
    monkeypatch.setitem(sys.modules, "wandb", service)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def told():
        live = Trackers(["wandb", "tensorboard"], Told(tmp_path, CONFIG, 0))
        live.write(1, {"loss": 1.5})
        live.close()
        return capsys.readouterr().err

    [line] = told().splitlines()
    assert line.startswith("warning: report_to: wandb: WANDB_API_KEY is not set; ")
    assert "the run goes on without it, metrics.jsonl has everything" in line
    assert service.calls == []
    assert list((tmp_path / "tensorboard").iterdir())
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password canary-7\n")
    assert told() == ""
    assert "canary" not in str(service.calls)
    assert service.calls[0][0] == "init"
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert told() == ""
