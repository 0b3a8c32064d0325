"""What is missing on disk is said before anything slow starts, with the exit code of its kind."""

import pytest

from rdro_jax.config import Config, ModelSource, ReferenceSource, check_inputs
from rdro_jax.data import DataConfig
from rdro_jax.errors import RecordError, WeightError
from rdro_jax.losses import RDRO


@pytest.fixture
def config(tmp_path):
    """A run whose files are all there."""
    model = tmp_path / "base"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"")
    (tmp_path / "rows.jsonl").write_text("")
    return Config(
        output_dir=str(tmp_path / "run"),
        model=ModelSource(path=str(model)),
        data=DataConfig(train=str(tmp_path / "rows.jsonl")),
        loss=RDRO(),
    )


def test_nothing_missing(config):
    check_inputs(config)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_model_folder_without(config, tmp_path, name):
    (tmp_path / "base" / name).unlink()
    with pytest.raises(
        WeightError, match=r"^model\.path: no (config\.json|\*\.safetensors) in '.*base'; wanted a Hugging"
    ):
        check_inputs(config)


def test_no_such_folder(config):
    changed = config.model_copy(update={"reference": ReferenceSource(path="nowhere")})
    with pytest.raises(WeightError, match=r"^reference\.path: no folder 'nowhere'"):
        check_inputs(changed)
    assert WeightError.exit_code == 4


@pytest.mark.parametrize("key", ["train", "eval"])
def test_no_such_rows(config, key):
    data = DataConfig(**{"train": config.data.train, key: "nowhere.jsonl"})
    with pytest.raises(RecordError, match=rf"^data\.{key}: no file 'nowhere\.jsonl'"):
        check_inputs(config.model_copy(update={"data": data}))
    assert RecordError.exit_code == 3
