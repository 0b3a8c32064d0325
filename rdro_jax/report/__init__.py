"""Looking at runs from the files they leave: one HTML page for one run or several, and a view in the terminal.

No model is loaded and jax is not imported.
"""

from rdro_jax.report.page import write_report
from rdro_jax.report.runs import Run, load_runs
from rdro_jax.report.status import Status, read_status

__all__ = ["Run", "Status", "load_runs", "read_status", "write_report"]
