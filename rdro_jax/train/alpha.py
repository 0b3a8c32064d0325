"""`loss.alpha: estimate`: alpha from held-out rows, before the first step of a run, and the same after a resume."""

import dataclasses
from pathlib import Path
from typing import Any

from rdro_jax.config import Config
from rdro_jax.errors import CheckpointError, ConfigError
from rdro_jax.losses import RDRO, Loss
from rdro_jax.parallel import from_first
from rdro_jax.run_files import ALPHA_FILE, seal, unseal
from rdro_jax.train.console import say
from rdro_jax.train.dataset import HeldoutSet, evaluate_policy
from rdro_jax.train.policy import Policy
from rdro_jax.train.run import RunFolder, write_json
from rdro_jax.train.trained import starting_params


def resolve_loss(config: Config, run: RunFolder, policy: Policy, share: float, heldout: HeldoutSet | None) -> Loss:
    """The loss with what it takes from the data filled in; `share` is the training share of desirable examples.

    Raises: ConfigError where alpha is to be estimated and the held-out rows do not tell it.
    """
    loss = config.loss
    if getattr(loss, "alpha", None) != "estimate":
        return loss.resolve(share)
    file = run.path / ALPHA_FILE
    found = from_first(lambda: _read(file))
    if found is None:
        found = _estimate(config, policy, share, heldout)
        from_first(lambda: write_json(file, seal(found)))
    say(
        f"{file}: alpha {found['value']:.4f}, 95 % interval [{found['low']:.4f}, {found['high']:.4f}] by held-out "
        f"rows; the training share is {share:.4f}"
    )
    return dataclasses.replace(loss, alpha=found["value"]).resolve(share)  # pyright: ignore[reportCallIssue]


def _read(file: Path) -> dict[str, Any] | None:
    """What was estimated before; None where nothing was. Raises: CheckpointError where it is not as it was written."""
    if not file.exists():
        return None
    found = unseal(file.read_bytes())
    if found is None:
        raise CheckpointError(
            f"{file}: not as it was written, and it decides the loss; bring it back, or remove it and alpha is "
            "estimated again"
        )
    return found


def _estimate(config: Config, policy: Policy, share: float, heldout: HeldoutSet | None) -> dict[str, Any]:
    """alpha_hat of the starting policy with its interval. Raises: ConfigError where the interval leaves (0, 1)."""
    params = starting_params(config, policy)
    evaluation = evaluate_policy(config, policy, RDRO(alpha=share), params, (), heldout)
    assert evaluation is not None, "the config asks for held-out rows beside loss.alpha: estimate"
    metrics = evaluation.metrics
    value, low, high = (metrics[f"eval_alpha_hat/{name}"] for name in ("value", "low", "high"))
    if value is None or low is None or high is None or not (0 < low <= value <= high < 1):
        raise ConfigError(
            f"loss.alpha: estimate: got {value}, 95 % interval [{low}, {high}]; the held-out rows do not tell alpha "
            "with this policy; give a number, or alpha: data"
        )
    return {"value": value, "low": low, "high": high}
