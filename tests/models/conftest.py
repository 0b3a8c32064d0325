"""What tests of models share."""

import pytest
from hf_folders import LLAMA, random_params

from rdro_jax.models import save_model


@pytest.fixture
def folder(tmp_path):
    """A sound folder, to be damaged."""
    save_model(random_params(LLAMA), LLAMA, tmp_path / "model")
    return tmp_path / "model"
