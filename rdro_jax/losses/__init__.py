"""Losses over completion log-probabilities: arrays in, one value per example out.

Each loss is a pure function, written as its paper writes it, and a frozen config object that is the same function with
its hyper-parameters applied. The union type `Loss` is the registry: config loader, sweeps and contract tests read it.
"""

from rdro_jax.losses.base import LossFunction, LossInputs, Weighted
from rdro_jax.losses.logprobs import completion_lengths, completion_logps_from_hidden, token_logps
from rdro_jax.losses.rdro import RDRO, rdro
from rdro_jax.losses.sft import SFT, sft

Loss = RDRO | SFT

__all__ = [
    "RDRO",
    "SFT",
    "Loss",
    "LossFunction",
    "LossInputs",
    "Weighted",
    "completion_lengths",
    "completion_logps_from_hidden",
    "rdro",
    "sft",
    "token_logps",
]
