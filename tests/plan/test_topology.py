"""Names of machines: what they mean, and what is said of a name that means none."""

import jax
import pytest

from rdro_jax.errors import ConfigError
from rdro_jax.parallel.hardware import DEVICES
from rdro_jax.plan import devices
from rdro_jax.plan.devices import make_devices
from rdro_jax.plan.topology import parse_topology


@pytest.mark.parametrize(
    ("name", "platform", "kind", "count"),
    [
        ("v5e:4x4", "tpu", "v5e", 16),
        ("v5p:2x2x4", "tpu", "v5p", 16),
        ("tpu7x:2x2x2", "tpu", "tpu7x", 16),  # two devices a chip
        ("2xv5e:4x4", "tpu", "v5e", 32),
        ("10xtpu7x:2x2x2", "tpu", "tpu7x", 160),
        ("gpu:8xh100", "gpu", "h100", 8),
        ("h100:8", "gpu", "h100", 8),
        ("cpu:8", "cpu", "cpu", 8),
    ],
)
def test_a_name_tells_kind_and_number(name, platform, kind, count):
    topology = parse_topology(name)
    assert (topology.platform, topology.kind, topology.num_devices) == (platform, kind, count)
    assert topology.device is DEVICES[kind]


@pytest.mark.parametrize(
    "name",
    [
        *("v5e", "v5e:4", "v5e:0x4", "v5p:4x4", "v9:4x4", "gpu:8xtoaster", "gpu:0xh100", "cpu:2x4"),
        *("0xv5e:4x4", "1xv5e:4x4", "2xcpu:8", "2xh100:8", "2xgpu:8xh100", "x2v5e:4x4"),
    ],
)
def test_a_name_that_means_nothing_is_refused_with_names_that_do(name):
    with pytest.raises(ConfigError, match=rf"--topology: got '{name}'; wanted .*v5e:4x4.*gpu:8xh100.*cpu:8"):
        parse_topology(name)


@pytest.mark.parametrize(
    ("name", "what_to_do"), [("v5e:4x4", r"pip install 'rdro_jax\[plan\]'"), ("gpu:8xh100", "docs/scaling.md says how")]
)
def test_a_compiler_that_is_not_installed_is_named_with_what_to_do(no_compilers, name, what_to_do):
    with pytest.raises(ConfigError, match=f"{name}: its compiler is not installed; {what_to_do}.*--estimate"):
        make_devices(parse_topology(name))


@pytest.mark.parametrize(("count", "shape"), [(1, "1x1x1"), (3, "1x1x3"), (8, "1x1x8"), (16, "1x2x8"), (12, "1x3x4")])
def test_gpus_beyond_eight_are_nodes(monkeypatch, count, shape):
    """Of as many as eight, or as divide them: jax's name is slices x processes x devices."""
    told = {}
    monkeypatch.setattr("importlib.util.find_spec", lambda module: module)
    monkeypatch.setattr(devices, "_described", lambda machine, name, platform, **options: told.update(options))
    make_devices(parse_topology(f"gpu:{count}xh100"))
    assert told["topology"] == shape


@pytest.mark.parametrize(
    ("name", "one", "options"),
    [
        ("v5e:4x4", "v5e:4x4", {}),
        ("2xv5e:4x4", "v5e:4x4", {"num_slices": 2}),
        ("3xtpu7x:2x2x2", "tpu7x:2x2x2", {"num_slices": 3}),
        ("2xv5e:1x1", "v5e:1x1", {"num_slices": 2}),
        ("v5e:1x1", "v5e:1x1", {"chips_per_host_bounds": [1, 1, 1]}),
    ],
)
def test_libtpu_is_asked_for_a_slice_and_their_number(monkeypatch, name, one, options):
    asked = []
    monkeypatch.setattr("importlib.util.find_spec", lambda module: module)
    monkeypatch.setattr(devices, "_described", lambda machine, name, platform, **more: asked.append((name, more)))
    make_devices(parse_topology(name))
    assert asked == [(one, options)]


def test_more_simulated_devices_than_there_are_is_said():
    assert len(jax.devices("cpu")) == 8  # made before the question, as by an earlier plan: no more can be made then
    with pytest.raises(ConfigError, match="cpu:9999: this process simulates 8; "):
        make_devices(parse_topology("cpu:9999"))
