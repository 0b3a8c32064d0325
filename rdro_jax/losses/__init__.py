"""Losses over completion log-probabilities: arrays in, one value per example out.

Each loss is a pure function, written as its paper writes it, and a frozen config object that is the same function with
its hyper-parameters applied. The union type `Loss` is the registry: config loader, sweeps and contract tests read it.
"""

from rdro_jax.losses import diagnostics
from rdro_jax.losses.base import LossBase, LossInputs, Weighted
from rdro_jax.losses.bco import BCO, bco, udm_weights
from rdro_jax.losses.cpo import CPO, cpo
from rdro_jax.losses.ddro import DDRO, ddro
from rdro_jax.losses.dpo import DPO, dpo
from rdro_jax.losses.head import HeadSplit, token_logps
from rdro_jax.losses.kto import KTO, APOZeroUnpaired, apo_zero_unpaired, kto
from rdro_jax.losses.logprobs import completion_lengths, completion_logps_from_hidden
from rdro_jax.losses.orpo import ORPO, orpo
from rdro_jax.losses.rdro import RDRO, rdro
from rdro_jax.losses.sft import SFT, sft
from rdro_jax.losses.simpo import SimPO, simpo

Loss = RDRO | DDRO | KTO | APOZeroUnpaired | BCO | DPO | SimPO | CPO | ORPO | SFT

__all__ = [
    "BCO",
    "CPO",
    "DDRO",
    "DPO",
    "KTO",
    "ORPO",
    "RDRO",
    "SFT",
    "APOZeroUnpaired",
    "HeadSplit",
    "Loss",
    "LossBase",
    "LossInputs",
    "SimPO",
    "Weighted",
    "apo_zero_unpaired",
    "bco",
    "completion_lengths",
    "completion_logps_from_hidden",
    "cpo",
    "ddro",
    "diagnostics",
    "dpo",
    "kto",
    "orpo",
    "rdro",
    "sft",
    "simpo",
    "token_logps",
    "udm_weights",
]
