"""A plan in words: where everything lies, what it weighs, what goes between devices, how long a step takes at least."""

import math
from collections.abc import Iterator

from rdro_jax.parallel.hardware import GIB
from rdro_jax.plan.plan import Plan, spelled


def tell(plan: Plan, *, with_layout: bool = True) -> Iterator[str]:
    """Lines for a person; bytes are per device."""
    yield from _setting(plan)
    if with_layout:
        yield from _layout(plan)
    yield from _memory(plan)
    yield from _traffic(plan)
    yield from _time(plan)


def verdict(plan: Plan) -> str:
    """Whether it fits, and by how much."""
    needed, memory = plan.needed / GIB, plan.topology.device.memory / GIB
    counted = "" if plan.compiled else " by the estimate"
    if math.isinf(memory):
        return f"{plan.topology.name}: {needed:.2f} GiB per device{counted}"
    if plan.fits:
        return f"{plan.topology.name}: fits{counted}: {needed:.2f} of {memory:.2f} GiB per device"
    return f"{plan.topology.name}: does not fit: {needed:.2f} GiB per device, {needed - memory:.2f} more than it has"


def _setting(plan: Plan) -> Iterator[str]:
    config, model = plan.config, plan.model
    axes = " ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    yield f"{config.model.path} on {plan.topology.name}, {plan.topology.num_devices} devices: {axes}"
    rows = config.global_batch_size // (plan.mesh["data"] * plan.mesh["fsdp"])
    yield (
        f"{config.global_batch_size} rows x {config.data.max_length} tokens a step, {rows} a shard, "
        f"{config.num_microbatches} micro-batches; {config.model.dtype} parameters, {model.compute_dtype} compute, "
        f"remat {model.remat}, attention {model.attention}"
    )


def _layout(plan: Plan) -> Iterator[str]:
    rows = [
        (place.path, "x".join(map(str, place.shape)), spelled(place, plan.mesh), place.device_bytes)
        for place in plan.params + plan.frozen
    ]
    widths = [max(len(str(row[column])) for row in rows) for column in range(3)]
    yield f"\n{'parameter':{widths[0]}}  {'shape':{widths[1]}}  {'mesh axes':{widths[2]}}  MiB a device"
    for number, (name, shape, spec, size) in enumerate(rows):
        frozen = "" if number < len(plan.params) else "  frozen"
        yield f"{name:{widths[0]}}  {shape:{widths[1]}}  {spec:{widths[2]}}  {size / 2**20:12.2f}{frozen}"


def _memory(plan: Plan) -> Iterator[str]:
    parts, compiled = plan.parts, plan.compiled
    largest = max(parts._asdict().items(), key=lambda item: item[1])[0]
    yield f"\n{'memory of a device':24}{'GiB':>8}"
    for name, size in parts._asdict().items():
        yield f"  {name:22}{size / GIB:8.2f}{'  the largest' if name == largest else ''}"
    yield f"  {'peak by the estimate':22}{parts.peak / GIB:8.2f}"
    if compiled is not None:
        yield f"  {'peak as compiled':22}{compiled.peak / GIB:8.2f}"
        yield (
            f"  compiled in {compiled.seconds:.0f} s: arguments {compiled.arguments / GIB:.2f}, temporaries "
            f"{compiled.temporaries / GIB:.2f} GiB (some in the arguments' place), code {compiled.code / 2**20:.0f} MiB"
        )


def _traffic(plan: Plan) -> Iterator[str]:
    if plan.compiled is None or not plan.compiled.collectives:
        return
    yield f"\n{'collective':22}{'places':>8}{'runs':>8}{'GiB sent by a device':>22}"
    for kind, traffic in plan.compiled.collectives.items():
        yield f"  {kind:20}{traffic.places:8}{traffic.count:8}{traffic.sent / GIB:22.3f}"


def _time(plan: Plan) -> Iterator[str]:
    yield (
        f"\nFLOPs of a step: {plan.flops.model:.3g} of the model, {plan.flops.executed:.3g} executed at least "
        "(by count; a scan hides its layers from compilers)"
    )
    if math.isnan(plan.mfu_bound):
        return
    times = ", ".join(f"{name} {seconds:.2f}" for name, seconds in plan.times.items())
    step = max(plan.times.values())
    tokens = plan.config.global_batch_size * plan.config.data.max_length / step / plan.topology.num_devices
    yield (
        f"least seconds a step by published peaks: {times}; at most {tokens:,.0f} tokens/s a device, MFU "
        f"{plan.mfu_bound:.0%} (a bound, not a forecast)"
    )
