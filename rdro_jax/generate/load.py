"""A model folder onto all devices, for whatever asks a model rather than trains it."""

from pathlib import Path

from jax.sharding import Mesh

from rdro_jax.errors import ConfigError
from rdro_jax.models import ModelConfig, Params, abstract_params, load_model, load_model_config
from rdro_jax.parallel import MeshConfig, make_mesh, param_shardings


def load_spread(directory: str | Path) -> tuple[Params, ModelConfig, Mesh]:
    """The model of a Hugging Face folder in float32, and the mesh of all devices that its parameters are sharded over.

    Raises: WeightError for an unusable folder.
    """
    model = load_model_config(directory)
    mesh = spread_mesh(model)
    params, _ = load_model(directory, shardings=param_shardings(abstract_params(model), mesh))
    return params, model, mesh


def spread_mesh(model: ModelConfig) -> Mesh:
    """The mesh of all devices with as many shards as the model's sizes allow, and replicas for the rest.

    A run's mesh is refused where it does not divide, for its config can name another; who asks a model names none.
    """
    shapes, devices = abstract_params(model), make_mesh(MeshConfig()).size
    for shards in (n for n in range(devices, 1, -1) if devices % n == 0):
        mesh = make_mesh(MeshConfig(data=-1, fsdp=shards))
        try:
            param_shardings(shapes, mesh)
        except ConfigError:
            continue
        return mesh
    return make_mesh(MeshConfig(data=-1, fsdp=1))
