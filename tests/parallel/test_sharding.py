"""Meshes and shardings: what divides is placed, what does not is refused with the sizes that would do."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny import CONFIG

from rdro_jax.errors import ConfigError
from rdro_jax.losses import SFT
from rdro_jax.models import LoraConfig, abstract_adapters, abstract_params
from rdro_jax.optim import OptimizerConfig, make_optimizer
from rdro_jax.parallel import (
    SHARDS,
    MeshConfig,
    check_heads,
    check_row_length,
    check_rows,
    layout,
    make_mesh,
    param_shardings,
    path_name,
)
from rdro_jax.parallel.mesh import device_grid
from rdro_jax.train.state import state_shardings


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshConfig(), (1, 8, 1, 1)),
        (MeshConfig(data=-1, fsdp=2, tensor=2), (2, 2, 1, 2)),
        (MeshConfig(8, 1, 1), (8, 1, 1, 1)),
        (MeshConfig(context=4), (1, 2, 4, 1)),
    ],
)
def test_the_remaining_devices_are_filled_in(config, sizes):
    assert config.sizes(8) == sizes
    assert tuple(make_mesh(config).shape.values()) == sizes


@pytest.mark.parametrize(
    "config", [MeshConfig(3), MeshConfig(-1, -1), MeshConfig(1, 4, 1), MeshConfig(0), MeshConfig(16)]
)
def test_meshes_that_do_not_cover_the_devices_are_refused(config):
    with pytest.raises(ConfigError, match=r"mesh: got data="):
        config.sizes(8)


def test_every_parameter_and_moment_has_its_place():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    params = abstract_params(CONFIG)
    placed = param_shardings(params, mesh)
    assert placed["embed_tokens"]["embedding"].spec == PartitionSpec("tensor", SHARDS)
    assert placed["layers"]["self_attn"]["o_proj"]["kernel"].spec == PartitionSpec(None, "tensor", SHARDS)
    optimizer = make_optimizer(OptimizerConfig(), 10)
    state = state_shardings(params, SFT(), optimizer, mesh)
    by_name = {path_name(path): leaf.spec for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)}
    for moment in ("mu", "nu"):
        matches = [spec for name, spec in by_name.items() if name.endswith(f"{moment}/layers/mlp/up_proj/kernel")]
        assert matches == [PartitionSpec(None, SHARDS, "tensor")]


def test_an_axis_that_does_not_divide_is_named_with_sizes_that_do():
    mesh = make_mesh(MeshConfig(1, 8, 1))
    odd = {"layers": {"mlp": {"up_proj": {"kernel": jax.ShapeDtypeStruct((2, 36, 64), np.float32)}}}}
    with pytest.raises(ConfigError, match=r"layers/mlp/up_proj/kernel .*fsdp=8 does not divide 36.*1, 2, 3, 4, 6$"):
        param_shardings(odd, mesh)


def test_a_parameter_without_a_rule_is_refused():
    with pytest.raises(ConfigError, match="layers/router/kernel: no rule"):
        param_shardings(
            {"layers": {"router": {"kernel": jax.ShapeDtypeStruct((8, 8), np.float32)}}}, make_mesh(MeshConfig())
        )


def test_heads_are_never_cut():
    mesh = make_mesh(MeshConfig(1, 1, 8))
    check_heads(mesh, 32, 8)
    with pytest.raises(ConfigError, match=r"got 8 for 28 heads and 4 key/value heads; sizes that divide both: 1, 2, 4"):
        check_heads(mesh, 28, 4)


def test_rows_must_feed_every_shard_in_every_microbatch():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    check_rows(mesh, 16, 4)
    with pytest.raises(ConfigError, match=r"got 12 rows; wanted a multiple of 8"):
        check_rows(mesh, 12, 2)


def test_rows_are_cut_into_equal_parts():
    mesh = make_mesh(MeshConfig(context=4))
    check_row_length(mesh, 32)
    with pytest.raises(ConfigError, match=r"max_length: got 30 tokens; wanted a multiple of mesh.context=4"):
        check_row_length(mesh, 30)


def test_adapters_lie_where_their_matrices_do():
    """Rank is never split; the other side of each adapter is split as that side of its matrix."""
    mesh = make_mesh(MeshConfig(1, 2, 2, 2))
    adapters = param_shardings(abstract_adapters(CONFIG, LoraConfig(r=2)), mesh)["layers"]
    whole = param_shardings(abstract_params(CONFIG), mesh)["layers"]
    for part, matrices in adapters.items():
        for name, adapter in matrices.items():
            inputs, outputs = whole[part][name]["kernel"].spec[1:]
            assert adapter["lora_A"].spec == PartitionSpec(None, inputs, None)
            assert adapter["lora_B"].spec == PartitionSpec(None, None, outputs)


def test_the_layout_counts_the_bytes_of_one_device():
    mesh, tree = make_mesh(MeshConfig(1, 2, 2, 2)), abstract_params(CONFIG)
    arrays = jax.device_put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree), param_shardings(tree, mesh))
    held = {path_name(p): x.addressable_shards[0].data.nbytes for p, x in jax.tree_util.tree_leaves_with_path(arrays)}
    assert {row.path: row.device_bytes for row in layout(tree, param_shardings(tree, mesh))} == held


def devices(groups, each, attribute):
    """Stand-ins for devices in groups that a faster network joins, in an order of no group."""
    fixed = {"platform": "cpu", "device_kind": "cpu", "process_index": 0}
    return [SimpleNamespace(**fixed | {"id": n, attribute: n % groups}) for n in range(groups * each)]


@pytest.mark.parametrize("attribute", ["slice_index", "process_index"])
def test_only_the_named_axes_cross_slices_or_nodes(attribute):
    grid = device_grid(MeshConfig(data=4, fsdp=2, tensor=2, dcn_data=2), devices(2, 8, attribute))
    assert grid.shape == (4, 2, 1, 2)
    groups = np.vectorize(lambda device: getattr(device, attribute))(grid)
    assert (groups == groups[:, :1, :1, :1]).all()  # fsdp and tensor stay within
    assert sorted(groups[:, 0, 0, 0]) == [0, 0, 1, 1]
    grid = device_grid(MeshConfig(data=1, fsdp=8, tensor=2, dcn_fsdp=2), devices(2, 8, attribute))
    groups = np.vectorize(lambda device: getattr(device, attribute))(grid)
    assert (groups == groups[:, :, :, :1]).all()


def test_slices_that_no_axis_is_to_cross_are_refused():
    with pytest.raises(ConfigError, match=r"dcn_data=1, dcn_fsdp=1 for devices in 2 slices; .*product is 2"):
        device_grid(MeshConfig(), devices(2, 8, "slice_index"))
    with pytest.raises(ConfigError, match=r"mesh.dcn_data: got 2; wanted a factor of data=1"):
        device_grid(MeshConfig(dcn_data=2), devices(2, 8, "slice_index"))
