"""The end of a run that hangs: JAX notices a process that is gone, never one that is there and stands still."""

import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MEDIANS = 10
"""A step is stuck after this many median steps, and not before the run's `step_timeout`."""
REMEMBERED = 50
"""Steps of which the median is taken."""
PATIENCE = 10.0
"""Seconds between the stacks and the end of one of several processes: its end is that of all, and the stacks that tell
most are those of the one that stands still, whose own watchdog may be a moment later."""


class Watchdog:
    """Calls `stuck` once from a thread of its own where no step ends for too long."""

    def __init__(self, timeout: float, stuck: Callable[[float], None]):
        """`timeout` in seconds; `stuck` is given the seconds that have passed."""
        self._timeout, self._stuck = timeout, stuck
        self._durations: deque[float] = deque(maxlen=REMEMBERED)
        self._since: float | None = None
        self._ended = threading.Event()

    def limit(self) -> float:
        """Seconds a step may take now."""
        return max(self._timeout, MEDIANS * self.median())

    def median(self) -> float:
        """Seconds of a step, those it was the last of included; 0 before the first."""
        return statistics.median(self._durations or [0.0])

    def beat(self) -> None:
        """A step has ended, the next one begins."""
        now = time.monotonic()
        if self._since is not None:
            self._durations.append(now - self._since)
        self._since = now

    def alive(self) -> None:
        """Something other than a step has got on: a batch of an evaluation."""
        self._since = time.monotonic()

    def rest(self) -> None:
        """What follows until the next beat may take its time: a save."""
        self._since = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while this is open."""
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.beat()
        thread.start()
        try:
            yield
        finally:
            self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(self._timeout / 10, 1.0)):
            since = self._since
            if since is not None and (passed := time.monotonic() - since) > self.limit():
                self._stuck(passed)
                return


def abort(stacks: Path, what: str, patience: float, passed: float) -> None:
    """Write the stacks of all threads to `stacks` and end this process with SIGABRT, on a full disk too.

    `patience` are seconds in which other processes may write theirs, `passed` those without the end of a step.
    """
    try:
        with stacks.open("w") as file:
            file.write(f"{what} for {passed:.0f} s\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        where = f"in {stacks}"
    except OSError as error:
        where = f"nowhere ({error.strerror})"
    print(
        f"rdro: {what} for {passed:.0f} s; the stacks of all threads are {where}; the same command goes on from the "
        "last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    time.sleep(patience)
    os.abort()
