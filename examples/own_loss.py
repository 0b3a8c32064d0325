"""A loss of your own in twenty lines: what it is, and one step of training by it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

import rdro_jax as rj
from rdro_jax.losses import LossBase, Weighted


@dataclass(frozen=True)  # frozen: the loss is a config, hence a cache key and a static argument
class Hinge(LossBase):
    """Log-ratios beyond a margin, liked ones upwards, others downwards, cost nothing."""

    name: str = "hinge"
    margin: float = 1.0  # nats

    def __call__(self, x: rj.LossInputs) -> Weighted:
        """One value and one weight per example, never reduced: the step divides once, over all devices."""
        sign = jnp.where(x.desirable, 1.0, -1.0)
        return Weighted(jax.nn.relu(self.margin - sign * (x.policy_logps - x.reference_logps)), x.weight)


def main() -> dict[str, float]:
    """Log-ratios, in nats, of a liked completion and another after ten steps of a policy that is a table of them."""
    prompts, completions = [[5, 6], [5, 6]], [[7, 8], [4]]  # token ids, which this policy does not read
    batch = rj.make_batch(prompts, completions, [True, False], reference_logps=[-7.0, -3.0])
    loss, optimizer = Hinge(margin=2.0), optax.sgd(0.5)
    step = jax.jit(rj.make_train_step(lambda params, batch: params, loss, optimizer))
    state = rj.init_state(batch.reference_logps, loss, optimizer)
    for _ in range(10):
        state, _ = step(state, batch)
    liked, other = (state.params - batch.reference_logps)[:, 0]
    print(f"log-ratio of the liked completion {liked:+.2f}, of the other {other:+.2f} nats")
    return {"liked": float(liked), "other": float(other)}


if __name__ == "__main__":
    main()
