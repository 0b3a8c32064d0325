"""A run's policy as a Hugging Face folder of its own."""

from pathlib import Path

import jax
from jax.sharding import Mesh

from rdro_jax.checkpoint import find_fault, list_steps, load_items
from rdro_jax.config import Config, load_config
from rdro_jax.errors import CheckpointError, ConfigError
from rdro_jax.models import save_adapters, save_model
from rdro_jax.parallel import MeshConfig, make_mesh, param_shardings
from rdro_jax.train.card import metrics_of, write_card
from rdro_jax.train.policy import make_policy
from rdro_jax.train.state import TrainState
from rdro_jax.train.trained import load_base, merged_params, trained_shapes


def export(
    run_dir: str | Path,
    out: str | Path,
    *,
    step: int | None = None,
    dtype: str | None = None,
    adapter: bool = False,
) -> Path:
    """Write the policy of a checkpoint (default: the newest) to `out`, with tokenizer files, and return `out`.

    The weights keep the type the run held them in, unless `dtype` names one. Adapters are merged into the model;
    `adapter` writes them alone, in PEFT's form.

    Raises: `CheckpointError` where the run has no such checkpoint, `ConfigError` where it has no adapter.
    """
    run, out = Path(run_dir), Path(out)
    steps = list_steps(run)
    if not steps or (step is not None and step not in steps):
        wanted = "any checkpoint" if step is None else f"checkpoint-{step}"
        raise CheckpointError(f"{run}: holds no {wanted}; complete checkpoints: {steps or 'none'}")
    step = steps[-1] if step is None else step
    fault = find_fault(run, step)
    if fault is not None:
        raise CheckpointError(
            f"{fault}; export another step: {', '.join(str(s) for s in steps if s != step) or 'none'}"
        )
    config = load_config(run / "config.yaml")
    policy = make_policy(config.model.path, _mesh(config))
    if adapter and config.model.lora is None:
        raise ConfigError(f"{run}: this run trained the model itself, not adapters (model.lora); leave out --adapter")
    shapes = trained_shapes(config, policy)
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        param_shardings(shapes, policy.mesh),
    )
    trained = load_items(run, step, {"params": placed})["params"]
    if config.model.lora is not None and adapter:
        save_adapters(trained, config.model.lora, out, base=config.model.path)
        return out
    frozen = () if config.model.lora is None else load_base(config, policy)
    params = merged_params(config, TrainState(jax.numpy.int32(step), trained, (), frozen=frozen))
    save_model(params, policy.model, out, base=config.model.path, dtype=dtype)
    write_card(out, config, params, step, metrics_of(run, step))
    return out


def _mesh(config: Config) -> Mesh:
    """The run's mesh; on a machine of other devices, whatever it has."""
    try:
        return make_mesh(config.mesh)
    except ConfigError:
        return make_mesh(MeshConfig())
