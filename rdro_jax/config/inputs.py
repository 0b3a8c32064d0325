"""The cheap questions to ask of the disk before anything slow starts."""

from dataclasses import replace
from pathlib import Path

from rdro_jax.config.schema import Config
from rdro_jax.data import sources_of
from rdro_jax.errors import RecordError, WeightError
from rdro_jax.hub import HUB, model_folder, pin_model


def pin_models(config: Config) -> Config:
    """The config with the commit in place of the branch or tag of each hub model it names; they are then here.

    Raises: WeightError where one cannot be had.
    """
    model = replace(config.model, path=pin_model(config.model.path))
    reference = replace(config.reference, path=config.reference.path and pin_model(config.reference.path))
    return config.model_copy(update={"model": model, "reference": reference})


def check_inputs(config: Config) -> None:
    """Return if the model folders and data files a run names are there.

    Raises: WeightError for a model folder, RecordError for a data file, naming the config key and the path.
    """
    check_models(config)
    check_data(config)


def check_models(config: Config) -> None:
    """Return if the model folders a run names are there. Raises: WeightError, naming the config key and the path."""
    for key, folder in {"model.path": config.model.path, "reference.path": config.reference.path}.items():
        if folder is not None:
            _check_model(key, model_folder(folder))


def check_data(config: Config) -> None:
    """Return if the data a run names are there. Raises: RecordError, naming the config key and the path."""
    for key, value in {"data.train": config.data.train, "data.eval": config.data.eval}.items():
        for path in [source.path for source in sources_of(value)] if value is not None else []:
            if not path.startswith(HUB) and not Path(path).exists():
                raise RecordError(f"{key}: no file '{path}'; wanted rows of prompt, completion, label as JSONL")


def _check_model(key: str, folder: Path) -> None:
    wanted = "wanted a Hugging Face folder with config.json and *.safetensors"
    if not folder.is_dir():
        raise WeightError(f"{key}: no folder '{folder}'; {wanted}")
    if not (folder / "config.json").is_file():
        raise WeightError(f"{key}: no config.json in '{folder}'; {wanted}")
    if not any(folder.glob("*.safetensors")):
        raise WeightError(f"{key}: no *.safetensors in '{folder}'; {wanted}")
