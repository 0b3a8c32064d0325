"""Faults inside a run: each function is called in the process before `rdro` starts, and changes one thing."""

import importlib
import json
import os
import re
import resource
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace


def at_step(step, act):
    """Call `act` once, when a step has been given to the devices and not yet been judged."""
    from rdro_jax.train.recorder import Recorder

    hold = Recorder.hold

    def hold_and_act(self, number, *told):
        hold(self, number, *told)
        if number == step:
            act()

    Recorder.hold = hold_and_act


def slow_steps(seconds=0.2):
    """Steps take as long as real ones: a notice that travels between processes does not outrun milliseconds."""
    from rdro_jax.train.recorder import Recorder

    hold = Recorder.hold

    def hold_slowly(self, *told):
        time.sleep(seconds)
        hold(self, *told)

    Recorder.hold = hold_slowly


def signal_at(step, number=signal.SIGTERM, process=None):
    """Send this process (of several, whose steps are slow then: only the one named) a signal at a step."""
    if "JAX_PROCESS_ID" in os.environ:
        slow_steps()

    def act():
        if process is None or os.environ.get("JAX_PROCESS_ID", "0") == str(process):
            os.kill(os.getpid(), number)

    at_step(step, act)


def stuck_in_python(step, process=0):
    """Stand still at a step, alive."""
    at_step(step, lambda: os.environ.get("JAX_PROCESS_ID", "0") == str(process) and threading.Event().wait())


def late_to_leave(process, seconds=3):
    """A process comes to its end later than the others."""
    from rdro_jax import parallel

    leave = parallel.leave

    def leave_late(code, **how):
        time.sleep(seconds if os.environ["JAX_PROCESS_ID"] == str(process) else 0)
        return leave(code, **how)

    parallel.leave = leave_late


def stuck_data(step):
    """The data of a step never come."""
    from rdro_jax.data import Loader

    get = Loader.__getitem__
    Loader.__getitem__ = lambda self, number: threading.Event().wait() if number == step else get(self, number)


def full_disk(limit):
    """No file grows beyond `limit` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def full_disk_at(step, after, limit=20_000):
    """From a step on, once the file `after` is there, no file grows beyond `limit` bytes."""

    def act():
        while not after.exists():
            time.sleep(0.01)
        full_disk(limit)

    at_step(step, act)


def fill_disk_at(step, after, room):
    """At a step, once the file `after` is there, fill up the disk it lies on, but for `room` bytes."""

    def act():
        while not after.exists():
            time.sleep(0.01)
        with (after.parent / "ballast").open("wb") as ballast:
            ballast.write(bytes(shutil.disk_usage(after.parent).free - room))

    at_step(step, act)


def no_room(free=1000):
    """The disk has `free` bytes left; the model must not be read."""

    def disk_usage(place):
        print(f"asked after {time.process_time():.1f} CPU-seconds")
        return SimpleNamespace(free=free)

    shutil.disk_usage = disk_usage
    trained = importlib.import_module("rdro_jax.train.trained")

    def load_model(*_, **__):
        raise AssertionError("the model was loaded")

    trained.load_model = load_model


def poisoned(steps, process):
    """Reference log-probs of a process' rows are NaN in these steps."""
    import numpy as np

    from rdro_jax.data import Loader

    get = Loader.__getitem__

    def poison(self, number):
        batch, members = get(self, number)
        if number + 1 in steps and self.reference_logps is not None and os.environ["JAX_PROCESS_ID"] == str(process):
            batch = batch._replace(reference_logps=np.full_like(batch.reference_logps, np.nan))
        return batch, members

    Loader.__getitem__ = poison


def rows_to(folder: Path):
    """Write a hash of every row that this process' training takes, by step: a file for each process."""
    import jax
    import numpy as np
    import xxhash

    from rdro_jax.data import Loader

    get, file = Loader.__getitem__, folder / f"{os.environ.get('JAX_PROCESS_ID', '0')}.jsonl"
    folder.mkdir(exist_ok=True)

    def get_and_tell(self, number):
        batch, members = get(self, number)
        if len(self.plans) > 1:  # of the epochs of training; evaluation has one
            fields = [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]
            rows = [
                xxhash.xxh3_64(b"".join(field[row].tobytes() for field in fields)).hexdigest()
                for row in range(len(members))
            ]
            with file.open("a") as out:
                out.write(json.dumps([number, rows]) + "\n")
        return batch, members

    Loader.__getitem__ = get_and_tell


def a_bug():
    """Ends with a traceback and code 70."""

    def act():
        raise RuntimeError("a bug")

    at_step(2, act)


def clock_goes_back():
    """The wall clock jumps back an hour with every look at it."""
    now = [time.time()]

    def earlier():
        now[0] -= 3600
        return now[0]

    time.time = earlier


def watched(file: Path, every, stop=None):
    """Write memory, open files and compilations at every so many steps; ask for an end at the step `stop`."""
    import jax

    from rdro_jax.train.recorder import Recorder

    hold, compiled = Recorder.hold, [0]

    def on_event(event, _seconds, **_):
        compiled[0] += event.endswith("backend_compile_duration")

    jax.monitoring.register_event_duration_secs_listener(on_event)

    def hold_and_look(self, number, *told):
        hold(self, number, *told)
        if number % every == 0 or number == 1:
            # Without the pages of files: the system drops and reads those as it likes. With what it has swapped out.
            status = Path("/proc/self/status").read_text()
            kilobytes = sum(int(re.search(rf"{part}:\s+(\d+)", status)[1]) for part in ("RssAnon", "VmSwap"))
            look = {"step": number, "megabytes": kilobytes / 1e3, "files": len(os.listdir("/proc/self/fd"))}
            with file.open("a") as out:
                out.write(json.dumps(look | {"compiled": compiled[0]}) + "\n")

        if number == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    Recorder.hold = hold_and_look


def hash_restored(file: Path):
    """Write the hash of every array that comes back from a checkpoint, as it lies on this run's devices."""
    import jax
    import numpy as np
    import xxhash

    loop = importlib.import_module("rdro_jax.train.loop")
    load_items = loop.load_items

    def load_and_hash(*told):
        items, digest = load_items(*told), xxhash.xxh3_128()
        for path, leaf in jax.tree_util.tree_leaves_with_path(items):
            numbers = np.asarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {numbers.dtype} {numbers.shape}".encode())
            digest.update(np.ascontiguousarray(numbers).tobytes())
        file.with_name(f"{file.name}-{jax.process_index()}").write_text(digest.hexdigest())
        return items

    loop.load_items = load_and_hash
