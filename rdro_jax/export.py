"""A run's policy as a Hugging Face folder of its own."""

from pathlib import Path

import jax

from rdro_jax.checkpoint import find_fault, list_steps, load_items
from rdro_jax.config import load_config
from rdro_jax.errors import CheckpointError
from rdro_jax.models import abstract_params, save_model
from rdro_jax.parallel import make_mesh
from rdro_jax.train.policy import make_policy


def export(run_dir: str | Path, out: str | Path, *, step: int | None = None) -> Path:
    """Write the policy of a checkpoint (default: the newest) to `out`, with tokenizer files, and return `out`.

    The weights keep the type the run held them in. Raises `CheckpointError` where the run has no such checkpoint.
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
    policy = make_policy(config.model.path, make_mesh(config.mesh))
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract_params(policy.model, config.model.dtype),
        policy.param_shardings,
    )
    params = load_items(run, step, {"params": placed})["params"]
    save_model(params, policy.model, out, base=config.model.path)
    return out
