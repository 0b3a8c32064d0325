"""The run's configuration: one frozen, hashable tree, read strictly from YAML files and `key=value` overrides."""

from rdro_jax.config.cluster import Cluster, load_cluster
from rdro_jax.config.inputs import check_data, check_inputs, check_models, pin_models
from rdro_jax.config.loader import load_config
from rdro_jax.config.schema import Config, ModelSource, ProfileConfig, ReferenceSource

__all__ = [
    "Cluster",
    "Config",
    "ModelSource",
    "ProfileConfig",
    "ReferenceSource",
    "check_data",
    "check_inputs",
    "check_models",
    "load_cluster",
    "load_config",
    "pin_models",
]
