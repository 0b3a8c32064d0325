"""The run's configuration: one frozen, hashable tree, read strictly from YAML files and `key=value` overrides."""

from rdro_jax.config.inputs import check_data, check_inputs, check_models, pin_models
from rdro_jax.config.loader import load_config
from rdro_jax.config.schema import Config, ModelSource, ProfileConfig, ReferenceSource

__all__ = [
    "Config",
    "ModelSource",
    "ProfileConfig",
    "ReferenceSource",
    "check_data",
    "check_inputs",
    "check_models",
    "load_config",
    "pin_models",
]
