"""The policy of a run as a Hugging Face folder: at its end in the run folder, on the way in folders of their own."""

import shutil
from typing import Any

from rdro_jax.config import Config
from rdro_jax.errors import StorageError
from rdro_jax.models import save_adapters, save_model
from rdro_jax.parallel import is_first
from rdro_jax.train.card import write_card
from rdro_jax.train.policy import Policy
from rdro_jax.train.run import RunFolder
from rdro_jax.train.state import TrainState
from rdro_jax.train.trained import merged_params

ADAPTER_FOLDER = "adapter"
"""Where in its folder a run with `model.lora` leaves the adapters in PEFT's form, beside the merged model."""
EXPORTS_FOLDER = "exports"
"""Where in its folder a run leaves the policies of steps on the way."""


def export_end(config: Config, policy: Policy, run: RunFolder, step: int, state: TrainState, metrics: Any) -> None:
    """Write the finished policy into the run folder, its adapters beside it. Raises: StorageError."""
    if config.model.lora is not None:
        save_adapters(state.params, config.model.lora, run.path / ADAPTER_FOLDER, base=config.model.path)
    params = merged_params(config, state)
    save_model(params, policy.model, run.path, base=config.model.path)
    write_card(run.path, config, params, step, metrics)


def export_step(config: Config, policy: Policy, run: RunFolder, step: int, state: TrainState, metrics: Any) -> None:
    """Write the policy after a step to `exports/step_000100`, a folder that appears when it is whole.

    Raises: StorageError.
    """
    folder = run.path / EXPORTS_FOLDER / f"step_{step:06d}"
    unfinished, params = folder.with_name(f".{folder.name}.unfinished"), merged_params(config, state)
    save_model(params, policy.model, unfinished, base=config.model.path)
    write_card(unfinished, config, params, step, metrics)
    if not is_first():
        return
    try:
        if folder.exists():  # of this run, if it went on from an earlier step, or of one that left no checkpoint
            shutil.rmtree(folder)
        unfinished.rename(folder)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}; free space and start again") from error
