"""Architectures of published models without their weights: what a plan, a benchmark or a random start needs."""

from pathlib import Path
from typing import Any

import yaml

from rdro_jax.errors import ConfigError, WeightError
from rdro_jax.models.config import ModelConfig
from rdro_jax.models.families import FAMILIES


def load_preset(path: str | Path) -> ModelConfig:
    """The architecture in a file of `configs/models/`, whose section `config` is spelled as in Hugging Face's files.

    Raises:
        ConfigError: there is no such file, or it describes no model we have.
    """
    file = Path(path)
    if not file.is_file():
        near = ", ".join(sorted(other.stem for other in file.parent.glob("*.yaml"))) or "none"
        raise ConfigError(f"{file}: no such preset; beside it are: {near}")
    try:
        config: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))["config"]
        return FAMILIES[config["model_type"]].read_config(config)
    except (yaml.YAMLError, KeyError, TypeError, WeightError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file}: not a preset ({reason}); wanted a section config as in config.json") from None
