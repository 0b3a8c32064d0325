"""What becomes of a run that diverges: it ends, or goes back to its last checkpoint and leaves out the rows since.

The steps since that checkpoint count as skipped: the position in the data goes on, the state is that of the checkpoint.
Nothing else has to be kept: a run that is stopped in between meets the same rows, diverges and goes back alike.
"""

from pathlib import Path

import jax
import numpy as np

from rdro_jax.checkpoint import CheckpointWriter, find_fault, list_steps, load_items
from rdro_jax.errors import DivergedError
from rdro_jax.parallel import from_first
from rdro_jax.train.console import Report, say
from rdro_jax.train.recorder import Recorder
from rdro_jax.train.state import TrainState, state_items


def settle_step(
    most: int, run_dir: Path, saver: CheckpointWriter, recorder: Recorder, show: Report, number: int, state: TrainState
) -> TrainState:
    """`state`, that of step `number` or later, once the metrics of that step are fetched and sound.

    Where they say that the run diverged, and it has gone back less than `most` times, it is the last checkpoint's state
    as that of step `number`; `state` is gone then.

    Raises: `DivergedError` with the last good state, where the run may not go back or has nothing to go back to.
    """
    try:
        recorder.fetch(show)
        return state
    except DivergedError as error:
        saver.wait()
        good = from_first(lambda: _last_sound(run_dir, number))
        if good is None or recorder.rollbacks >= most:
            where = "that of the start" if good is None else f"checkpoint-{good}"
            raise DivergedError(f"{error}; the last good state is {where}") from None
        say(f"warning: {error}; going back to checkpoint-{good} without the rows of steps {good + 1} to {number}")
    state = _restore(run_dir, good, number, state)
    recorder.went_back(number, good, state)
    return state


def _last_sound(run_dir: Path, number: int) -> int | None:
    """The newest step up to `number` whose checkpoint is as it was written: a run may stand before a damaged one."""
    sound = (step for step in reversed(list_steps(run_dir)) if step <= number and find_fault(run_dir, step) is None)
    return next(sound, None)


def _restore(run_dir: Path, good: int, number: int, state: TrainState) -> TrainState:
    """The state of a checkpoint where `state` lay, which makes room for it first."""
    step, live = state.step.sharding, state_items(state)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), live)
    for leaf in jax.tree.leaves(live):
        leaf.delete()
    restored = state._replace(**load_items(run_dir, good, abstract))
    return restored._replace(step=jax.device_put(np.int32(number), step))
