"""Sweep files over the stub trial."""

import pytest
import yaml


def write_sweep(folder, **keys):
    """A sweep file in `folder`, its base config beside it: `keys` on top of a random sweep of two trials."""
    (folder / "model").mkdir(parents=True)
    for name, text in (("model/config.json", "{}"), ("model/m.safetensors", ""), ("rows.jsonl", "")):
        (folder / name).write_text(text)
    base = {"model": {"path": str(folder / "model")}, "loss": {"name": "rdro"}, "output_dir": "elsewhere"}
    base["data"] = dict.fromkeys(("train", "eval"), str(folder / "rows.jsonl"))
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    sweep = {
        "base": "base.yaml",
        "output_dir": str(folder / "sweep"),
        "sampler": {"name": "random"},
        "trials": 2,
        "space": {"optimizer": {"learning_rate": {"log": [1.0e-7, 1.0e-5]}}},
    }
    sweep |= keys
    if sweep["sampler"]["name"] == "grid":
        del sweep["trials"]
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return folder / "sweep.yaml"


@pytest.fixture
def sweep_file(tmp_path):
    """`write_sweep` in a folder of the test's own; again, it changes the file."""

    def write(**keys):
        for number in range(99):
            if not (tmp_path / str(number)).exists():
                return write_sweep(tmp_path / str(number), **keys)

    return write


@pytest.fixture(scope="session")
def write_sweep_in():
    """`write_sweep`, for fixtures that outlive a test."""
    return write_sweep
