"""A run's policy as a Hugging Face folder of its own."""

from pathlib import Path

from rdro_jax.config import load_config
from rdro_jax.errors import ConfigError
from rdro_jax.models import save_adapters, save_model
from rdro_jax.train.card import metrics_of, write_card
from rdro_jax.train.policy import make_policy
from rdro_jax.train.saved import run_mesh, saved_trained, sound_step, with_base


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
    step = sound_step(run, step)
    config = load_config(run / "config.yaml")
    policy = make_policy(config.model.path, run_mesh(config))
    if adapter and config.model.lora is None:
        raise ConfigError(f"{run}: this run trained the model itself, not adapters (model.lora); leave out --adapter")
    trained = saved_trained(run, config, policy, step)
    if config.model.lora is not None and adapter:
        save_adapters(trained, config.model.lora, out, base=config.model.path)
        return out
    params = with_base(config, policy, trained, step)
    save_model(params, policy.model, out, base=config.model.path, dtype=dtype)
    write_card(out, config, params, step, metrics_of(run, step))
    return out
