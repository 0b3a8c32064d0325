"""Alpha is a number, so a sweep over it is one `vmap`: where does RDRO go when alpha is not the data's?

Three completions, of which p+ and p- are known; the reference is their mixture at 0.4. Whole runs are swept as
`for alpha in (0.3, 0.5): rj.train(rj.load_config(path, [f"loss.alpha={alpha}", f"output_dir=runs/{alpha}"]))`.
"""

import jax
import jax.numpy as jnp

import rdro_jax as rj

PREFERRED, OTHER, TRUE_ALPHA = jnp.array([0.6, 0.3, 0.1]), jnp.array([0.1, 0.3, 0.6]), 0.4
REFERENCE = TRUE_ALPHA * PREFERRED + (1 - TRUE_ALPHA) * OTHER


def objective(logits: jax.Array, alpha: jax.Array) -> jax.Array:
    """Exact expectation of the loss: each completion once as liked and once as not, at its true share."""
    logps = jnp.tile(jax.nn.log_softmax(logits), 2)
    shares = jnp.concatenate([TRUE_ALPHA * PREFERRED, (1 - TRUE_ALPHA) * OTHER])
    liked = jnp.arange(6) < 3
    return jnp.sum(shares * rj.losses.rdro(logps, jnp.tile(jnp.log(REFERENCE), 2), liked, alpha=alpha))


def fitted(alpha: jax.Array) -> jax.Array:
    """The policy after gradient descent from the reference."""
    down = lambda logits, _: (logits - 0.5 * jax.grad(objective)(logits, alpha), None)  # noqa: E731
    return jax.nn.softmax(jax.lax.scan(down, jnp.log(REFERENCE), length=2000)[0])


def main() -> dict[float, float]:
    """KL from p+ to the policy, in nats, by alpha."""
    alphas = jnp.array([0.2, 0.3, 0.4, 0.5, 0.6])
    policies = jax.jit(jax.vmap(fitted))(alphas)
    divergences = jnp.sum(PREFERRED * jnp.log(PREFERRED / policies), axis=1)
    found = {round(float(alpha), 2): float(kl) for alpha, kl in zip(alphas, divergences, strict=True)}
    for alpha, kl in found.items():
        print(f"alpha {alpha}: KL(p+ | policy) {kl:.4f} nats")
    return found


if __name__ == "__main__":
    main()
