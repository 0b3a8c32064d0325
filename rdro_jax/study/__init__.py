"""Known-truth studies: which loss finds p+, how fast, and what breaks it, each figure beside the wanted one."""

from rdro_jax.study.report import Check, Options, StudyReport
from rdro_jax.study.run import STUDIES, MissedError, run

__all__ = ["STUDIES", "Check", "MissedError", "Options", "StudyReport", "run"]
