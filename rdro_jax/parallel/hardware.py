"""What one accelerator is, by published figures: one table for plans and for the utilisation a run tells."""

import math
from typing import NamedTuple

GIB = 2**30


class Device(NamedTuple):
    """One device as jax counts them, with published figures."""

    memory: float
    """Bytes a program may use."""
    flops: float
    """Peak of matrix products in bfloat16, per second, without sparsity."""
    bandwidth: float
    """Bytes per second between the device and its memory."""
    links: float
    """Bytes per second a device sends to its peers, over all its links."""
    axes: int = 1
    """Numbers in the shape of a slice."""
    per_chip: int = 1
    """Devices of one chip."""


DEVICES = {
    "v5e": Device(15.75 * GIB, 197e12, 819e9, 200e9, axes=2),
    "v5p": Device(95.74 * GIB, 459e12, 2765e9, 600e9, axes=3),
    "v6e": Device(31.25 * GIB, 918e12, 1638e9, 400e9, axes=2),
    "tpu7x": Device(94.75 * GIB, 1153.5e12, 3690e9, 300e9, axes=3, per_chip=2),
    "a100": Device(0.75 * 79.1 * GIB, 312e12, 2039e9, 300e9),
    "h100": Device(0.75 * 79.1 * GIB, 989e12, 3352e9, 450e9),
    "h200": Device(0.75 * 141.0 * GIB, 989e12, 4800e9, 450e9),
    "cpu": Device(math.inf, math.nan, math.nan, math.nan),
}
"""Source of TPUs: docs.cloud.google.com/tpu/docs, pages v5e, v5p, v6e and tpu7x, links half of "bidirectional"; memory
is what libtpu 0.0.42 leaves to a program. Of GPUs: NVIDIA's data sheets of the SXM modules (80, 80 and 141 GB); memory
is the three quarters that jax takes at its start (more: XLA_PYTHON_CLIENT_MEM_FRACTION). `cpu` simulates devices: they
have no memory of their own and no published figures."""

KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA A100": "a100",
    "NVIDIA H100": "h100",
    "NVIDIA H200": "h200",
}
"""Beginning of the name JAX gives a device -> row of `DEVICES`."""


def peak_flops(device_kind: str) -> float | None:
    """Peak of a device by the name JAX gives it; None where it is not known, as of a CPU.

    >>> peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    True
    >>> peak_flops("cpu")
    """
    known = [name for name in KINDS if device_kind.startswith(name)]
    return DEVICES[KINDS[max(known, key=len)]].flops if known else None
