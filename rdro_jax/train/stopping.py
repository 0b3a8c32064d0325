"""Reasons to stop between two steps: a signal, or the time a run was given. All processes stop after the same step."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

StopReason = Callable[[float], str | None]
"""Asked after each step and after each batch of an evaluation, equally often on every process, with the seconds that a
stop takes: why the run should stop now, or None."""


@contextmanager
def stop_requests(deadline: float | None) -> Iterator[StopReason]:
    """While it is open, SIGTERM and SIGINT ask for a stop after the step under way, and end nothing by themselves.

    `deadline` is the time.monotonic() by which the state is to be saved. A second SIGINT interrupts at once, as ever;
    what was saved before stays whole.
    """
    if jax.process_count() > 1:
        interrupt, asked = signal.signal(signal.SIGINT, _interrupt_all), itertools.count(1)
        try:
            # JAX catches SIGTERM itself, which is how clouds announce an end, and lets all processes agree on a moment.
            yield lambda seconds: _agreed(multihost_utils.reached_preemption_sync_point(next(asked)), deadline, seconds)
        finally:
            signal.signal(signal.SIGINT, interrupt)
        return
    received: list[str] = []

    def receive(number: int, _frame: object) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    # Signals reach the main thread only; a run in another one is stopped by whoever started it.
    handled = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, receive) for number in handled}
    try:
        yield lambda seconds: received[0] if received else _out_of_time(deadline, seconds)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt_all(_number: int, _frame: object) -> None:
    """The first Ctrl-C becomes a notice to all processes, a second one interrupts this one at once."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGTERM)


def _out_of_time(deadline: float | None, seconds: float) -> str | None:
    return "max_runtime" if deadline is not None and time.monotonic() + seconds > deadline else None


def _agreed(preempted: bool, deadline: float | None, seconds: float) -> str | None:
    """The reason that all processes have: their clocks differ, so the first one's is asked."""
    if preempted or deadline is None:
        return "preemption notice" if preempted else None
    late = multihost_utils.broadcast_one_to_all(_out_of_time(deadline, seconds) is not None)
    return "max_runtime" if late else None
