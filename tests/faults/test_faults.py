"""The long form, `make faults`: every fault into real runs, and what became of them compared bit for bit.

One of them: `make faults FAULT=F2`.
"""

import json
import random
import re
import shutil
import signal
import statistics
import subprocess
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from faults import inject
from faults.driver import STEPS, Home, assert_same_run, logged, metrics, same, saving, start, state, train, until

from rdro_jax.checkpoint import checkpoint_path, list_steps, manifest_path, sound_steps
from rdro_jax.data.store import open_artefact
from rdro_jax.errors import StorageError
from rdro_jax.parallel.cluster import HEARTBEAT_TIMEOUT
from rdro_jax.run_files import unseal
from rdro_jax.train.reference import load_logps

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
SAVE_STEPS = 3


def finished(run, **how):
    """The run, gone on with until its end."""
    started = train(run, **how)
    assert set(started.wait()) == {0}, started.told()
    return started


def copy(home, source, name):
    """A run of its own that stands where another one stands."""
    run = Home(home, home / name)
    shutil.copytree(source.run, run.run)
    (run.run / "result.json").unlink(missing_ok=True)
    return run


def stopped_after(home, name, step, **how):
    """A run that was asked to stop at a step."""
    run = Home(home, home / name)
    started = train(run, inject=partial(inject.signal_at, step), **how)
    assert set(started.wait()) == {42}, started.told()
    return run


@pytest.mark.parametrize(("processes", "devices"), [(1, 1), (1, 4), (2, 2)])
def test_F1_stop_and_resume(home, whole, processes, devices, measured):
    on = {"processes": processes, "devices": devices}
    uninterrupted = whole
    if processes * devices > 1:
        uninterrupted = Home(home, home / f"f1-whole-{processes}x{devices}")
        finished(uninterrupted, **on)
    run = Home(home, home / f"f1-{processes}x{devices}")
    for step in (1, STEPS // 2, STEPS - 1):
        started = train(run, inject=partial(inject.signal_at, step), **on)
        codes = started.wait()
        # two processes agree on a step one or two further on, which may be beyond the last
        assert set(codes) == {42} or (processes > 1 and step == STEPS - 1), started.told()
    finished(run, **on)
    assert [line["step"] for line in metrics(run.run) if "loss" in line] == [*range(1, STEPS + 1)]
    assert same(run.run, uninterrupted.run)
    measured(f"stopped at 1, {STEPS // 2}, {STEPS - 1} on {processes} x {devices} devices: same hash, same metrics")


def in_save(run, since):
    """Whether a save is under way that began after `since`: one that a kill broke off has left its mark."""
    for mark in run.run.glob("checkpoint-*.saving"):
        try:
            if mark.stat().st_mtime >= since:
                return True
        except FileNotFoundError:  # it has just ended
            continue
    return False


def test_F2_killed_at_random_moments(home, whole, measured):
    """Steps take a twentieth of a second here: those of milliseconds would be through before a save has begun."""
    rng, kills, runs = random.Random(2), 0, 0
    lost = {"between": [], "in a save": []}
    slowly = partial(inject.slow_steps, 0.05)
    began = time.monotonic()
    finished(Home(home, home / "f2-measure"), inject=slowly)
    seconds = time.monotonic() - began
    while kills < 20:
        runs += 1
        run = Home(home, home / f"f2-{runs}")
        while True:
            since = time.time()
            started = train(run, inject=slowly)
            end = time.monotonic() + rng.uniform(0.2, 1.0) * seconds
            until_save = kills % 4 == 3
            while started.processes[0].exitcode is None and (until_save or time.monotonic() < end):
                if until_save and in_save(run, since):
                    break
                time.sleep(0.002)
            moment = "in a save" if in_save(run, since) else "between"
            if started.processes[0].exitcode is None and kills < 20:
                started.send(signal.SIGKILL)
            codes = started.wait()
            if codes == [0]:  # before the kill, be it by a moment
                break
            assert codes == [-signal.SIGKILL], started.told()
            kills += 1
            told = [line["step"] for line in metrics(run.run)] if (run.run / "metrics.jsonl").exists() else []
            lost[moment].append(max(told, default=0) - max(list_steps(run.run), default=0))
        assert same(run.run, whole.run)
    assert len(lost["in a save"]) >= 3
    most = {moment: max(steps) for moment, steps in lost.items()}
    assert most["between"] <= SAVE_STEPS
    assert most["in a save"] <= 2 * SAVE_STEPS  # what is being saved is lost, and the steps done meanwhile
    measured(
        f"{kills} kills in {runs} runs, {len(lost['in a save'])} in a save: all recovered, same hash; at most "
        f"{most['between']} steps lost (interval {SAVE_STEPS}), {most['in a save']} by a kill in a save"
    )


def test_F3_a_signal_twice(home, whole, measured):
    run = Home(home, home / "f3-twice")
    started = train(run)
    until(logged(run, 4), started)
    began = time.monotonic()
    started.send(signal.SIGTERM)
    until(saving(run), started, 30)
    started.send(signal.SIGTERM)
    assert started.wait(60) == [42], started.told()
    seconds = time.monotonic() - began
    assert seconds < 30
    assert list_steps(run.run)[-1] == metrics(run.run)[-1]["step"]
    finished(run)
    assert same(run.run, whole.run)
    measured(f"a second SIGTERM while saving: 42 after {seconds:.1f} s, 0 steps lost, same hash")


def test_F3_one_of_two_processes_is_told(home, measured):
    run = Home(home, home / "f3-two")
    uninterrupted = Home(home, home / "f3-two-whole")
    finished(uninterrupted, processes=2)
    started = train(run, processes=2, inject=inject.slow_steps)
    until(logged(run, 4), started)
    began = time.monotonic()
    started.send(signal.SIGTERM, 1)
    assert started.wait(60) == [42, 42], started.told()
    seconds = time.monotonic() - began
    assert seconds < 30
    step = list_steps(run.run)[-1]
    assert step == metrics(run.run)[-1]["step"] < STEPS
    finished(run, processes=2)
    assert same(run.run, uninterrupted.run)
    measured(f"SIGTERM to one of two: both saved step {step} and ended with 42 after {seconds:.1f} s; same hash")


def files_of(folder):
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and file.stat().st_size]


def damages(raw, rng):
    """Ways to damage the bytes of a file: emptied, cut, one bit flipped at twelve places; None deletes it."""
    yield None
    yield b""
    yield raw[: len(raw) // 2]
    for _ in range(12):
        at = rng.randrange(len(raw))
        yield raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]


def put(file, raw):
    file.unlink() if raw is None else file.write_bytes(raw)


def test_F4_damaged_checkpoints(home, whole, measured):
    run = copy(home, whole, "f4")
    older, newest = list_steps(run.run)
    rng, cases = random.Random(4), 0
    for file in [*files_of(checkpoint_path(run.run, newest)), manifest_path(run.run, newest)]:
        raw = file.read_bytes()
        for damaged in damages(raw, rng):
            cases += 1
            put(file, damaged)
            step, faults = sound_steps(run.run)
            if step == newest:  # a blank of the manifest: what it says is as it was
                assert unseal(damaged) == unseal(raw), (file, damaged)
                continue
            assert step == older, (file, damaged)
            assert str(file) in faults[0]
        file.write_bytes(raw)
    for file, says in (
        (rng.choice(files_of(checkpoint_path(run.run, newest) / "params")), "not as it was written"),
        (manifest_path(run.run, newest), "missing"),
    ):
        put(file, None if says == "missing" else b"")
        (run.run / "result.json").unlink(missing_ok=True)
        started = finished(run)
        assert f"{file}: {says}; going back to an older checkpoint" in started.told()
        assert same(run.run, whole.run)
    for step in list_steps(run.run):
        put(files_of(checkpoint_path(run.run, step))[0], None)
    (run.run / "result.json").unlink()
    before = {file: file.read_bytes() for file in files_of(run.run)}
    refused = train(run)
    assert refused.wait() == [4], refused.told()
    assert "no checkpoint can be restored" in refused.told()
    assert [file for file in before if file.read_bytes() != before[file] and file.name != "environment.json"] == []
    measured(f"{cases} damages to a checkpoint's files: 0 silent; the older one is used; all bad: code 4")


def test_F4_damaged_data(home, whole, measured):
    """One bit of the prepared data, anywhere: never read as if nothing had happened."""
    rng, cases = random.Random(5), 0
    for artefact in [path for path in (home / "prepared").iterdir() if path.is_dir()]:
        good = open_artefact(artefact)
        whole_arrays = {name: np.array(values) for name, values in good.arrays.items()}
        for file in files_of(artefact):
            if file.name.startswith(("packing-", "data_report")):
                continue  # planned again where it is damaged (tests/data/test_prepare.py); written anew at each start
            raw = file.read_bytes()
            for damaged in damages(raw, rng):
                cases += 1
                put(file, damaged)
                try:
                    found = open_artefact(artefact)
                except StorageError:
                    continue
                assert (found.tally, found.sources) == (good.tally, good.sources), (file, damaged)
                for name, values in whole_arrays.items():
                    np.testing.assert_array_equal(found.arrays[name], values)
            file.write_bytes(raw)
    measured(f"{cases} damages to prepared data: 0 silent")


def test_F4_damaged_reference_store(home, whole, measured):
    """One bit of stored log-probs, anywhere: never read as if nothing had happened."""
    rng, cases = random.Random(6), 0
    artefact = open_artefact(next(path for path in (home / "prepared").iterdir() if path.is_dir()))
    examples = SimpleNamespace(hashes=artefact.arrays["hashes"])
    for file in files_of(home / "store"):
        fingerprint, raw = file.parent.name, file.read_bytes()
        known = load_logps(home / "store", fingerprint, examples)
        for damaged in damages(raw, rng):
            cases += 1
            put(file, damaged)
            try:
                found = load_logps(home / "store", fingerprint, examples)
            except StorageError:
                continue
            finally:
                file.write_bytes(raw)
            # what is lost is computed again; what is there is as it was
            np.testing.assert_array_equal(found[~np.isnan(found)], known[~np.isnan(found)])
    measured(f"{cases} damages to the reference store: 0 silent")


def test_F5_the_disk_fills_up(home, whole, measured):
    run = Home(home, home / "f5")
    started = train(run, inject=partial(inject.full_disk_at, 4, manifest_path(run.run, 3)))
    assert started.wait() == [5], started.told()
    last = max((line["step"] for line in metrics(run.run)), default=0)
    assert last <= 4 + 2 * SAVE_STEPS
    assert sound_steps(run.run)[0] == 3
    assert started.told().count("Traceback") == 0
    finished(run)
    assert same(run.run, whole.run)
    measured(f"disk full from step 4: code 5 by step {last}, checkpoint-3 whole, same hash once there is room")


@pytest.fixture
def small_disk(home):
    """A run folder that is a disk of its own, in memory, of 16 MB."""
    folder = home / "f5-tmpfs"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"NOT RUN: no file system may be mounted here ({mounted.stderr.decode().strip()})")
    yield Home(home, folder)
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("room", [0, 100_000])
def test_F5_a_small_disk_is_full(small_disk, whole, measured, room):
    """With a little room left metrics go on, and the save is what fails."""
    run = small_disk
    started = train(run, inject=partial(inject.fill_disk_at, 4, manifest_path(run.run, 3), room))
    assert started.wait() == [5], started.told()
    last = max(line["step"] for line in metrics(run.run))
    assert last <= (4 + 2 * SAVE_STEPS if room else 4)
    assert sound_steps(run.run)[0] == 3
    assert "Traceback" not in started.told()
    (run.run / "ballast").unlink()
    finished(run)
    assert same(run.run, whole.run)
    measured(f"a disk of 16 MB with {room} bytes left from step 4: code 5 by step {last}, same hash once there is room")


def test_F5_no_room_for_a_line_or_a_page(home, whole, measured):
    run = Home(home, home / "f5-line")
    three = (whole.run / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:3]
    room = sum(map(len, three)) + 100  # more than the log holds, which has to say why
    started = train(run, inject=partial(inject.full_disk_at, 4, manifest_path(run.run, 3), room))
    assert started.wait() == [5], started.told()
    assert "Traceback" not in started.told()
    assert max(line["step"] for line in metrics(run.run)) == 3
    assert sound_steps(run.run)[0] == 3
    reported = start("report", str(run.run), logs=home, inject=partial(inject.full_disk, room))
    assert reported.wait() == [5], reported.told()
    assert "Traceback" not in reported.told()
    finished(run)
    assert same(run.run, whole.run)
    assert start("report", str(run.run), logs=home).wait() == [0]
    measured(
        "no room for a line of metrics or for the report: code 5 at once, same hash and a report once there is room"
    )


def test_F6_no_room(home, measured):
    run = Home(home, home / "f6")
    started = train(run, inject=inject.no_room)
    assert started.wait() == [5], started.told()
    assert "GiB free; the run needs" in started.told()
    seconds = float(re.findall(r"asked after ([\d.]+) CPU-seconds", started.told())[0])
    assert seconds < 5
    measured(f"too little room: refused with 5 after {seconds:.1f} CPU-seconds, before the model is loaded")


def test_F9_other_devices(home, measured):
    """Stopped on four devices, gone on with on others: the next step's loss, and the batches to the end."""
    four = stopped_after(home, "f9", 6, devices=4)
    ways = {
        "1": ({"devices": 1}, ()),
        "2": ({"devices": 2}, ()),
        "8": ({"devices": 8}, ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")),
        "2 processes": ({"devices": 2, "processes": 2}, ("mesh.data=2", "mesh.fsdp=2")),
    }
    runs, hashes = {}, {}
    for name, (on, overrides) in ways.items():
        runs[name] = copy(home, four, f"f9-{name.replace(' ', '-')}")
        restored = home / f"{runs[name].run.name}.restored"
        started = train(
            runs[name], *overrides, inject=None if "processes" in on else partial(inject.hash_restored, restored), **on
        )
        assert set(started.wait()) == {0}, started.told()
        if "processes" not in on:  # where every array is whole in one process
            hashes |= {name: [file.read_text() for file in sorted(home.glob(f"{restored.name}-*"))]}
    again = copy(home, four, "f9-again")
    started = train(again, devices=4, inject=partial(inject.hash_restored, home / "again.restored"))
    assert set(started.wait()) == {0}, started.told()
    [wanted] = [file.read_text() for file in home.glob("again.restored-*")]
    assert {name: set(found) for name, found in hashes.items()} == {
        name: {wanted} for name in ways if "processes" not in name
    }
    losses = {name: next(line["loss"] for line in metrics(run.run) if line["step"] == 7) for name, run in runs.items()}
    gap = max(losses.values()) - min(losses.values())
    assert gap <= 1e-6
    for name in ways:
        assert_same_run(runs["1"], runs[name])
    measured(
        f"4 devices -> {', '.join(ways)}: restored arrays equal bit for bit, loss of the next "
        f"step differs by {gap:.1e} at most, same batches"
    )


def test_F11_bad_numbers_on_one_shard(home, measured):
    run = Home(home, home / "f11")
    started = train(run, processes=2, inject=partial(inject.poisoned, {4, 6, 7, 8}, 1))
    assert started.wait() == [6, 6], started.told()
    told = started.told()
    assert "step 4: " in told
    assert "step 8: " in told
    assert "3 steps in a row" in told
    assert "last good state is checkpoint-" in told
    skipped = [line["step"] for line in metrics(run.run) if line["skipped_steps"]]
    assert skipped == [4, 6, 7, 8]
    back = Home(home, home / "f11-back")
    started = train(back, "max_rollbacks=1", processes=2, inject=partial(inject.poisoned, {4, 6, 7, 8}, 1))
    assert started.wait() == [0, 0], started.told()
    assert [line["rollback_to"] for line in metrics(back.run) if "rollback_to" in line] == [6]
    assert "going back to checkpoint-6 without the rows of steps 7 to 8" in started.told()
    measured(
        "NaN on one of two processes: both skip steps 4, 6, 7 and end with 6 at step 8, or both go back and end with 0"
    )


def test_F12_one_is_frozen(home, measured):
    run = Home(home, home / "f12-frozen")
    started = train(run, processes=2)
    until(logged(run, 4), started)
    started.send(signal.SIGSTOP, 1)
    began = time.monotonic()
    started.processes[0].join(4 * HEARTBEAT_TIMEOUT)
    seconds, code = time.monotonic() - began, started.processes[0].exitcode
    started.send(signal.SIGKILL, 1)
    started.wait()
    assert code in (42, -signal.SIGABRT), started.told()
    measured(f"one of two frozen: the other ended with {code} after {seconds:.0f} s")


@pytest.mark.parametrize("what", ["python", "data"])
def test_F12_alive_but_stuck(home, what, measured):
    run = Home(home, home / f"f12-{what}")
    fault = partial(inject.stuck_in_python, 4, 1) if what == "python" else partial(inject.stuck_data, 4)
    started = train(run, "step_timeout=20", processes=2, inject=fault)
    began = time.monotonic()
    codes = started.wait()
    assert -signal.SIGABRT in codes, started.told()
    assert set(codes) <= {42, -signal.SIGABRT}
    stacks = (run.run / "stacks-1.txt").read_text()  # of the one that stands still, whichever ended first
    assert ("inject.py" if what == "python" else "grain") in stacks
    assert "has ended no step for" in started.told()
    measured(
        f"stuck in {what}: ended with {codes} within {time.monotonic() - began:.0f} s of the start, stacks written"
    )


def test_F17_torn_line_and_a_clock_that_goes_back(home, whole, measured):
    run = stopped_after(home, "f17", 7)
    file = run.run / "metrics.jsonl"
    file.write_text(file.read_text()[:-20])
    with file.open("a") as out:
        out.write('{"step": 8, "lo')
    finished(run, inject=inject.clock_goes_back)
    left, right = metrics(run.run), metrics(whole.run)
    assert [line["step"] for line in left] == [line["step"] for line in right if line["step"] != 7]
    assert state(run.run) == state(whole.run)
    measured("last line torn, clock back an hour at every look: the torn line is lost, everything else is the same")


def test_F18_soak(home, measured):
    """A hundred steps after the first evaluations, which compile, beside the last hundred."""
    run, looks = Home(home, home / "f18"), home / "f18.jsonl"
    more = ("max_steps=500", "num_train_epochs=170", "checkpoint.save_steps=5", "eval_steps=50")
    started = train(run, *more, inject=partial(inject.watched, looks, 3))
    assert started.wait(800) == [0], started.told()
    seen = [json.loads(line) for line in looks.read_text().splitlines()]
    early, late = ([line for line in seen if first < line["step"] <= first + 100] for first in (100, 400))
    before, after = (statistics.median(line["megabytes"] for line in lines) for lines in (early, late))
    few, many = (min(line["files"] for line in lines) for lines in (early, late))
    assert after / before - 1 < 0.05
    assert many < few + 10  # a save under way has some open; one left open by each save would be 60
    measured(
        f"500 steps, 100 saves, 10 evaluations: memory {after / before - 1:+.1%} over 300 steps, "
        f"{(after - before) / 60:.2f} MB a save, open files {few} -> {many}"
    )


def test_F19_one_compilation(home, whole, measured):
    """Across training, evaluation and resume nothing is compiled but once, by the first step and first evaluation."""
    run, counts = Home(home, home / "f19"), []
    for stop in (STEPS // 2, None):
        looks = home / f"f19-{stop}.jsonl"
        watch = partial(inject.watched, looks, 1, stop)
        assert train(run, "eval_steps=2", inject=watch).wait() == [0 if stop is None else 42]
        counts.append([json.loads(line)["compiled"] for line in looks.read_text().splitlines()])
    # looked at when a step has been given to the devices: what the first evaluation compiles is there after three
    assert [count[3:] for count in counts] == [[count[3]] * (len(count) - 3) for count in counts]
    assert all(count[0] == count[1] for count in counts)
    assert state(run.run) == state(whole.run)
    measured(f"stopped and resumed, evaluated every other step: compilations by step {counts[0]}, {counts[1]}")


def rows_by_step(folder):
    """The rows that all processes took together at each step, whichever had which."""
    steps = {}
    for file in folder.iterdir():
        for number, rows in map(json.loads, file.read_text().splitlines()):
            steps.setdefault(number, []).extend(rows)
    return {number: sorted(rows) for number, rows in steps.items()}


def test_F20_four_processes(home, whole, measured):
    """Train, evaluate and export over 2 x 4 and 4 x 2 devices, beside 1 x 8 and 1 x 1."""
    shapes = ((1, 8), (2, 4), (4, 2))
    gaps, batches = {}, []
    for processes, devices in shapes:
        run = Home(home, home / f"f20-{processes}x{devices}")
        rows = home / f"f20-rows-{processes}x{devices}"
        finished(run, processes=processes, devices=devices, inject=partial(inject.rows_to, rows))
        gaps[processes, devices] = assert_same_run(whole, run)
        batches.append(rows_by_step(rows))
    assert sorted(batches[0]) == list(range(STEPS))
    assert batches[0] == batches[1] == batches[2]
    out = home / "f20-export"
    run = home / "f20-4x2"
    exported = start("export", str(run), str(out), logs=home, processes=2, devices=4)
    assert exported.wait() == [0, 0], exported.told()
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    rows = ("--data", str(home / "eval.jsonl"), "--max-length", "32")
    words = ("eval", str(run), "--reference", str(home / "model"), *rows)
    answers = []
    for processes in (1, 2):
        started = start(*words, logs=home, processes=processes, devices=2)
        assert set(started.wait()) == {0}, started.told()
        text = started.logs[0].read_text()
        answers.append(json.loads(text[text.index("{") : text.rindex("}") + 1]))
    figures = [dict(numbers(answer)) for answer in answers]
    assert len(figures[0]) > 30
    assert figures[1] == pytest.approx(figures[0], rel=1e-4, abs=1e-5)
    measured(
        f"losses beside one device: {', '.join(f'{p} x {d} {gap:.1e}' for (p, d), gap in gaps.items())}; same rows "
        f"in every batch; rdro eval of 1 and 2 processes: {len(figures[0])} figures alike"
    )


def numbers(answer, path=()):
    """Every number in what a command printed as JSON, by where it stands."""
    if isinstance(answer, dict | list):
        for key, value in answer.items() if isinstance(answer, dict) else enumerate(answer):
            yield from numbers(value, (*path, key))
    elif isinstance(answer, int | float):
        yield path, answer
