"""What a run needs of a machine that is not there: memory, traffic and time, by the machine's own compiler."""

from rdro_jax.plan.advice import advise
from rdro_jax.plan.devices import missing_compiler
from rdro_jax.plan.plan import Plan, as_json, make_plan
from rdro_jax.plan.tell import tell, verdict
from rdro_jax.plan.topology import Topology, parse_topology

__all__ = [
    "Plan",
    "Topology",
    "advise",
    "as_json",
    "make_plan",
    "missing_compiler",
    "parse_topology",
    "tell",
    "verdict",
]
