"""Align language models in JAX with relative density ratio optimisation (RDRO), from unpaired preference data.

>>> import rdro_jax as rj
>>> sorted(set(dir(rj)) & {"train", "load_model", "losses"})
['load_model', 'losses', 'train']
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdro_jax import losses as losses
    from rdro_jax.batch import Batch as Batch
    from rdro_jax.config import load_config as load_config
    from rdro_jax.data import make_batch as make_batch
    from rdro_jax.generate import generate as generate
    from rdro_jax.losses import Loss as Loss
    from rdro_jax.losses import LossInputs as LossInputs
    from rdro_jax.models import ModelConfig as ModelConfig
    from rdro_jax.models import forward as forward
    from rdro_jax.models import init_params as init_params
    from rdro_jax.models import load_model as load_model
    from rdro_jax.models import logits as logits
    from rdro_jax.models import save_model as save_model
    from rdro_jax.train import TrainState as TrainState
    from rdro_jax.train import completion_logps as completion_logps
    from rdro_jax.train import init_state as init_state
    from rdro_jax.train import make_train_step as make_train_step
    from rdro_jax.train import train as train

_HOMES = {
    "Batch": "rdro_jax.batch",
    "Loss": "rdro_jax.losses",
    "LossInputs": "rdro_jax.losses",
    "ModelConfig": "rdro_jax.models",
    "TrainState": "rdro_jax.train",
    "completion_logps": "rdro_jax.train",
    "forward": "rdro_jax.models",
    "generate": "rdro_jax.generate",
    "init_params": "rdro_jax.models",
    "init_state": "rdro_jax.train",
    "load_config": "rdro_jax.config",
    "load_model": "rdro_jax.models",
    "logits": "rdro_jax.models",
    "losses": "rdro_jax",
    "make_batch": "rdro_jax.data",
    "make_train_step": "rdro_jax.train",
    "save_model": "rdro_jax.models",
    "train": "rdro_jax.train",
}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    # Imported on first use: `rdro --help` must not wait a second for jax.
    if name not in _HOMES:
        raise AttributeError(f"module 'rdro_jax' has no attribute {name!r}")
    home = importlib.import_module("rdro_jax.losses" if name == "losses" else _HOMES[name])
    value = home if name == "losses" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the rooms `train` and `generate` binds them here under the names of the public functions.
        if not (name in ("train", "generate") and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
