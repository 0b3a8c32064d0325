"""A run's config on a tiny model folder: what a user has before a run."""

import pytest
from tiny import write_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def config_file(folder, tmp_path):
    """A run of about ten steps on one device, written as YAML."""
    file = tmp_path / "run.yaml"
    file.write_text(f"""
output_dir: {tmp_path / "run"}
num_train_epochs: 3
global_batch_size: 4
num_microbatches: 2
model: {{path: {folder / "model"}}}
reference: {{store: {tmp_path / "store"}}}
data: {{train: {folder / "train.jsonl"}, eval: {folder / "eval.jsonl"}, max_length: 32, slots: 4}}
loss: {{name: rdro}}
optimizer: {{learning_rate: 1.0e-2}}
checkpoint: {{save_steps: 3}}
mesh: {{fsdp: 2, data: -1}}
""")
    return file
