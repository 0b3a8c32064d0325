"""The watchdog sees steps that stand still, and neither slow ones nor evaluations."""

import os
import threading
import time

from rdro_jax.train.watchdog import Watchdog, abort


def watched(timeout):
    fired = threading.Event()
    return Watchdog(timeout, lambda passed: fired.set()), fired


def test_it_fires_once_no_step_ends():
    watch, fired = watched(0.2)
    with watch.watching():
        watch.beat()
        assert fired.wait(5)


def test_it_is_silent_while_steps_end_and_while_it_rests():
    watch, fired = watched(0.4)
    with watch.watching():
        for _ in range(6):
            time.sleep(0.1)
            watch.beat()
        watch.rest()
        time.sleep(0.8)
    time.sleep(0.5)  # after the last step nobody is watched
    assert not fired.is_set()


def test_ten_median_steps_are_allowed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch, _ = watched(5.0)
    watch.beat()
    for seconds in (1.0, 2.0, 300.0):
        now[0] += seconds
        watch.beat()
    assert watch.limit() == 20.0
    watch.rest()
    now[0] += 1000.0
    watch.beat()  # what lies behind a rest is no step
    assert watch.limit() == 20.0
    assert watched(60.0)[0].limit() == 60.0


def asleep_over_data(until):
    until.wait()


def test_the_end_is_an_abort_with_the_stacks_of_all_threads(tmp_path, monkeypatch, capsys):
    aborted, over = [], threading.Event()
    monkeypatch.setattr(os, "abort", lambda: aborted.append(True))
    thread = threading.Thread(target=asleep_over_data, args=(over,))
    thread.start()
    abort(tmp_path / "stacks-0.txt", "process 0 has ended no step", 0.0, 301.0)
    over.set()
    thread.join()
    assert aborted
    assert f"no step for 301 s; the stacks of all threads are in {tmp_path}/stacks-0.txt" in capsys.readouterr().err
    stacks = (tmp_path / "stacks-0.txt").read_text()
    assert "asleep_over_data" in stacks
    assert "test_the_end_is_an_abort" in stacks


def test_it_ends_where_nothing_can_be_written(tmp_path, monkeypatch, capsys):
    aborted = []
    monkeypatch.setattr(os, "abort", lambda: aborted.append(True))
    abort(tmp_path / "gone" / "stacks-0.txt", "process 0 has ended no step", 0.0, 301.0)
    assert aborted
    assert "nowhere (No such file or directory)" in capsys.readouterr().err


def test_others_may_write_their_stacks_before_the_end(tmp_path, monkeypatch):
    happened = []
    monkeypatch.setattr(time, "sleep", lambda seconds: happened.append((seconds, (tmp_path / "stacks-0.txt").exists())))
    monkeypatch.setattr(os, "abort", lambda: happened.append("abort"))
    abort(tmp_path / "stacks-0.txt", "process 0 has ended no step", 10.0, 301.0)
    assert happened == [(10.0, True), "abort"]
