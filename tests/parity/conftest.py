"""The real pretrained model that several comparisons share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct: the folder RDRO_SMOLLM2 names, else the quickstart's, downloaded on first use."""
    named = os.environ.get("RDRO_SMOLLM2")
    if named:
        return Path(named)
    from rdro_jax.quickstart import fetch_model  # here, so that a named folder needs no quickstart

    return fetch_model()


@pytest.fixture(scope="session")
def exported_smollm2(smollm2, tmp_path_factory):
    """The same model as we write it: loaded, then saved in float32 with the tokenizer's files."""
    from rdro_jax.models import load_model, save_model

    folder = tmp_path_factory.mktemp("smollm2")
    save_model(*load_model(smollm2), folder, base=smollm2)
    return folder
