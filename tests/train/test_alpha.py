"""alpha as estimated before the first step decides the loss of a run that goes on: it is believed where it is whole."""

import json

import pytest

from rdro_jax.config import load_config
from rdro_jax.errors import CheckpointError
from rdro_jax.run_files import ALPHA_FILE, seal
from rdro_jax.train.alpha import resolve_loss
from rdro_jax.train.run import RunFolder


def test_a_flipped_digit_of_alpha_does_not_change_the_loss(config_file, tmp_path):
    config = load_config(config_file, ["loss.alpha=estimate", f"reference.path={tmp_path}"])
    file, run = tmp_path / ALPHA_FILE, RunFolder(tmp_path, 3)
    file.write_text(json.dumps(seal({"value": 0.25, "low": 0.125, "high": 0.5})))
    resolve = lambda: resolve_loss(config, run, None, 0.4, None)  # noqa: E731  # nothing is estimated
    assert resolve().alpha == 0.25
    for damaged in (file.read_text().replace("0.25", "0.35"), "", "{"):
        file.write_text(damaged)
        with pytest.raises(CheckpointError, match=r"alpha\.json: not as it was written"):
            resolve()
