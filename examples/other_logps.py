"""The losses on log-probabilities from another library: arrays in, one value per example out, and its gradient.

Whatever made the numbers, PyTorch (`tensor.detach().numpy()`), vLLM or a file, the losses see arrays. The gradient with
respect to the log-probabilities is what another library needs to go on: `policy_logps.backward(gradient)` in PyTorch.
"""

import jax
import jax.numpy as jnp
import numpy as np

import rdro_jax as rj


def main() -> dict[str, np.ndarray]:
    """For each loss the gradient of its batch mean by the policy's log-probabilities, as numpy arrays."""
    policy = jnp.asarray(np.array([-12.0, -9.5, -20.1, -8.8], np.float32))  # nats, summed over completion tokens
    reference = jnp.asarray(np.array([-12.5, -9.0, -19.0, -9.1], np.float32))
    desirable = jnp.asarray(np.array([True, False, False, True]))
    losses = {
        "rdro": lambda logps: rj.losses.rdro(logps, reference, desirable, alpha=0.4),
        "ddro": lambda logps: rj.losses.ddro(logps, reference, desirable, alpha=0.4),
        "kto": lambda logps: rj.losses.kto(logps, reference, desirable, jnp.float32(0.2)),  # kl, estimated elsewhere
    }
    gradients = {}
    for name, loss in losses.items():
        value, gradient = jax.value_and_grad(lambda logps, loss=loss: loss(logps).mean())(policy)
        gradients[name] = np.asarray(gradient)
        print(f"{name}: {value:.3f} nats, gradient {np.round(gradients[name], 3)}")
    return gradients


if __name__ == "__main__":
    main()
