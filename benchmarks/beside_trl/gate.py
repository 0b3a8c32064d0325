"""One step at a time, when told to: how processes that must not run together take turns. Standard library only."""

import json
import os
import resource
import subprocess
import sys
import time
from typing import Any


class Gate:
    """A worker's side: tells its figures after each step, and waits for its next turn."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is no figure
        self._start, self._cpu = time.perf_counter(), time.process_time()

    def step_done(self, **figures: Any) -> None:
        """Tell what a step cost, in CPU seconds of all threads since the last one, and wait for the next turn."""
        cost = {"seconds": time.perf_counter() - self._start, "cpu_seconds": time.process_time() - self._cpu}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._cpu = time.process_time()
        print(json.dumps(figures | cost | {"peak_rss_bytes": peak}), file=self._out, flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # the trainer would go on
        self._start = time.perf_counter()


class Worker:
    """The other side of a gate: a process that waits for its first turn."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )
        self.wait()

    def wait(self) -> dict[str, Any]:
        """Figures of the step under way. Raises: RuntimeError where the process ended."""
        line = self._process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        if not line:
            raise RuntimeError(f"{self._process.args}: ended with code {self._process.wait()}")
        return json.loads(line)

    def step(self) -> dict[str, Any]:
        """Let it make one step; its figures."""
        print(file=self._process.stdin, flush=True)
        return self.wait()

    def close(self) -> None:
        """End it."""
        self._process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
        self._process.wait()
