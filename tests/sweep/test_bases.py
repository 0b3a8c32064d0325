"""A sweep over several configs: `base` as a list is one more axis."""

import pytest
import yaml

from rdro_jax.errors import ConfigError
from rdro_jax.sweep.points import dry_run
from rdro_jax.sweep.run import identity
from rdro_jax.sweep.spec import load_sweep


@pytest.fixture
def two_bases(sweep_file):
    """A grid over two configs that differ in their epochs, and over two learning rates."""
    rates = {"optimizer": {"learning_rate": {"choice": [1e-6, 2e-6]}}}
    file = sweep_file(base=["base.yaml", "other.yaml"], sampler={"name": "grid"}, space=rates)
    other = yaml.safe_load((file.parent / "base.yaml").read_text()) | {"num_train_epochs": 2}
    (file.parent / "other.yaml").write_text(yaml.safe_dump(other))
    return file


def test_every_base_is_run_with_every_point(two_bases):
    commands = list(dry_run(two_bases))
    for base in ("base.yaml", "other.yaml"):
        mine = [command for command in commands if f"train {two_bases.parent / base} " in command]
        assert sorted(command.partition("learning_rate=")[2].split()[0] for command in mine) == ["1e-06", "2e-06"]
    assert len(commands) == 4
    assert not any("base=" in command for command in commands)
    loaded = load_sweep(two_bases)
    assert {loaded.config(point).num_train_epochs for point in loaded.space.grid()} == {1, 2}


def test_a_change_in_any_base_makes_it_another_sweep(two_bases):
    before = identity(load_sweep(two_bases))
    other = two_bases.parent / "other.yaml"
    other.write_text(other.read_text().replace("num_train_epochs: 2", "num_train_epochs: 3"))
    now = identity(load_sweep(two_bases))
    assert {key for key in now if now[key] != before[key]} == {"base[1].num_train_epochs"}


def test_a_base_in_the_space_is_refused(sweep_file):
    with pytest.raises(ConfigError, match=r"space\.base: no key of a config"):
        load_sweep(sweep_file(space={"base": {"choice": ["base.yaml"]}}))
