"""Collectives of a compiled program, counted in programs whose traffic is known by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rdro_jax.plan.hlo import collectives

RING = """HloModule ring
%body (state: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %state = (s32[], bf16[4,8]) parameter(0)
  %two = s32[] constant(2)
  %turn = s32[] get-tuple-element(%state), index=0
  %part = bf16[4,8]{1,0} get-tuple-element(%state), index=1
  %next = s32[] add(%turn, %two)
  %start = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[], u32[]) collective-permute-start(%part), channel_id=7, x={{0,1},{1,0}}
  %done = bf16[4,8]{1,0} collective-permute-done(%start)
  ROOT %out = (s32[], bf16[4,8]) tuple(%next, %done)
}

%condition (state: (s32[], bf16[4,8])) -> pred[] {
  %state = (s32[], bf16[4,8]) parameter(0)
  %end = s32[] constant(8)
  %turn = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%turn, %end), direction=LT
}

%all-reduce-scatter.1 (x: f32[16]) -> f32[4] {
  %x = f32[16] parameter(0)
  %sum = f32[16] all-reduce(%x), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = f32[4] dynamic-slice(%sum), dynamic_slice_sizes={4}
}

ENTRY %main (a: bf16[4,8], x: f32[16]) -> bf16[4,8] {
  %a = bf16[4,8] parameter(0)
  %x = f32[16] parameter(1)
  %mine = f32[4] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %loop = (s32[], bf16[4,8]) while(%first), condition=%condition, body=%body
  %g1 = f32[8,8] all-gather(%y), channel_id=3, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  %g2 = f32[8,8] all-gather(%y), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %out = bf16[4,8] get-tuple-element(%loop), index=1
}
"""


def test_loops_slices_and_repeated_channels_are_read_as_what_they_are():
    found = collectives(RING)
    # The counter goes to 8 by 2: four turns of a ring of 64 bytes, counted once where operand and result are named.
    assert found["collective-permute"] == (1, 4, 4 * 64)
    # Three quarters of 64 bytes leave the device, once and not twice: only a slice is kept.
    assert found["reduce-scatter"] == (1, 1, 48)
    # One channel is one collective, however often it is written.
    assert found["all-gather"] == (1, 1, 8 * 8 * 4 * 3 / 4)
    assert "all-reduce" not in found


@pytest.mark.parametrize(("parts", "times"), [(8, 1), (4, 3)])
def test_a_scan_of_sums_over_devices_is_counted_turn_by_turn(parts, times):
    mesh = jax.make_mesh((8 // parts, parts), ("rest", "rows"), axis_types=(AxisType.Auto,) * 2)
    split = NamedSharding(mesh, PartitionSpec(None, "rows"))

    def sums(x):
        return jax.lax.scan(lambda total, row: (total + jnp.sum(row * total), None), 1.0, x)[0]

    shape = jax.ShapeDtypeStruct((times, 64), jnp.float32, sharding=split)
    found = collectives(jax.jit(sums).lower(shape).compile().as_text())
    assert found["all-reduce"].count == times
    assert found["all-reduce"].sent == pytest.approx(times * 4 * 2 * (parts - 1) / parts)
