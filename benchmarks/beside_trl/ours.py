"""Our trainer on the rows of a file, one step at a time: what `rdro train` runs, its loader and its compiled step."""

import json
import os
import sys

os.environ |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import jax
from gate import Gate

from rdro_jax.config import Config
from rdro_jax.optim import make_optimizer
from rdro_jax.parallel import rows_sharding
from rdro_jax.train.compiling import compile_step
from rdro_jax.train.dataset import make_training_loader
from rdro_jax.train.feed import Feed
from rdro_jax.train.loop import load_state
from rdro_jax.train.policy import make_run_policy
from rdro_jax.train.run import open_run, read_data


def main(settings: dict) -> None:
    """Train until the gate closes."""
    gate = Gate()
    config = Config.model_validate_json(json.dumps(settings["config"]))
    policy = make_run_policy(config)
    run = open_run(config)
    examples, _ = read_data(config, run.path)
    loader = make_training_loader(config, policy, examples, 0)
    loss, optimizer = config.loss.resolve(0.5), make_optimizer(config.optimizer, loader.num_batches)
    state = load_state(config, run, policy, optimizer, loss)
    step = compile_step(config, policy, loss, loader.num_batches, state, loader)
    gate.step_done()
    for batch in Feed((batch for batch, _ in loader), rows_sharding(policy.mesh)):
        state, metrics = step(state, batch)
        sums = {name: float(value) for name, value in jax.device_get(metrics).items()}
        gate.step_done(loss=sums["loss"] / sums["weight"], tokens=sums["tokens"], examples=sums["examples"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
