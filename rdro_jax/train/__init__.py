"""One step, one loop: what turns a config into an aligned model."""

from rdro_jax.train.loop import RunResult, train
from rdro_jax.train.policy import completion_logps
from rdro_jax.train.state import TrainState, init_state
from rdro_jax.train.step import make_train_step

__all__ = ["RunResult", "TrainState", "completion_logps", "init_state", "make_train_step", "train"]
