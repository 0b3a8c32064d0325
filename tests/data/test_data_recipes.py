"""configs/data on small files with the columns of the real data sets, through the command line."""

import json
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rdro_jax import cli
from rdro_jax.config import load_config

RECIPES = Path(__file__).parents[2] / "configs" / "data"


def row(number, label):
    return {
        "prompt": [{"role": "user", "content": f"Question {number}?"}],
        "completion": [{"role": "assistant", "content": f"Answer {number}."}],
        "label": label,
    }


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub whose data sets have 39 desirable training rows of 100, and 8 test rows."""

    def download(name, **_):
        folder = tmp_path / name / "data"
        folder.mkdir(parents=True, exist_ok=True)
        train, test = [row(i, i < 39) for i in range(100)], [row(1000 + i, i % 2 == 0) for i in range(8)]
        pq.write_table(pa.Table.from_pylist(train), folder / "train-00000-of-00001.parquet")
        pq.write_table(pa.Table.from_pylist(test), folder / "test-00000-of-00001.parquet")
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe_reads_the_columns_of_its_data_set(recipe, hub, chatml_folder, tmp_path, capsys):
    code = cli.main(["prepare", str(recipe), f"model.path={chatml_folder}", f"output_dir={tmp_path / 'run'}"])
    assert code == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    train, heldout = report["train"], report["eval"]
    assert (train["rows"], train["kept"], train["desirable"]["kept"], train["alpha"]) == (100, 100, 39, 0.39)
    assert (train["format"], train["ignored_columns"], train["dropped"]) == ("unpaired", [], {})
    assert (heldout["kept"], heldout["prompts_in_train"]) == (8, 0)


def test_both_data_sets_of_the_paper_have_a_recipe():
    paths = {load_config(recipe).data.train[0].path for recipe in RECIPES.glob("*.yaml")}
    assert paths == {"hub:trl-lib/ultrafeedback-gpt-3.5-turbo-helpfulness", "hub:trl-lib/kto-mix-14k"}


def test_ratings_become_labels_as_the_header_says(chatml_folder, tmp_path, capsys):
    """The `Ratings` lines of the header of uf-g.yaml, uncommented, over a file of ratings."""
    header = (RECIPES / "uf-g.yaml").read_text().partition("by a threshold:\n")[2].partition("output_dir")[0]
    source = "".join(line.lstrip("# ") for line in header.splitlines(keepends=True))
    ratings = [
        {"instruction": f"Question {i}?", "response": f"Answer {i}.", "helpfulness": str(1 + i % 5)} for i in range(50)
    ]
    pq.write_table(pa.Table.from_pylist(ratings), tmp_path / "ratings.parquet")
    config = tmp_path / "config.yaml"
    source = source.replace("ratings.parquet", str(tmp_path / "ratings.parquet")).removeprefix("- ").replace("\n", " ")
    sections = f"output_dir: {tmp_path}/run, model: {{path: {chatml_folder}}}, loss: {{name: rdro}}"
    config.write_text(f"{{{sections}, data: {{train: [{source}]}}}}")
    assert cli.main(["prepare", str(config)]) == 0, capsys.readouterr().err
    train = json.loads((tmp_path / "run" / "data_report.json").read_text())["train"]
    assert (train["kept"], train["desirable"]["kept"]) == (50, 10)
