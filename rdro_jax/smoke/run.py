"""smoke(config): the run a config describes, its model and rows replaced by tiny ones, for three steps."""

import dataclasses
import tempfile
from dataclasses import replace
from pathlib import Path

import jax

from rdro_jax.config import Config
from rdro_jax.data import DataConfig, Source, sources_of
from rdro_jax.parallel import MeshConfig
from rdro_jax.plan import make_plan, parse_topology, verdict
from rdro_jax.smoke.standins import tiny_like, write_model, write_rows
from rdro_jax.train import train
from rdro_jax.train.console import say

STEPS, MAX_LENGTH, SLOTS, HELDOUT_PROMPTS = 3, 128, 4, 16


def smoke(config: Config) -> float:
    """Loss, in nats, after three steps of `config` in small; nothing is downloaded, and no file is left.

    The model is a random one of the same family (`tiny_like`); rows are made up under the columns of the config's
    sources; rows per step, their length and micro-batches are fewer, and all devices lie along `mesh.fsdp`. Loss,
    optimizer, adapters, precision, recomputation, batching, evaluation and checkpoints are the config's own, but for
    trackers, traces, the mirror, `optimizer.skip_grad_norm` and, since a random policy does not tell it,
    `loss.alpha: estimate`, which is 1/2.

    Raises: as `train` and `make_plan`.
    """
    with tempfile.TemporaryDirectory(prefix="rdro-smoke-") as scratch:
        small = shrink(config, Path(scratch))
        plan = make_plan(small, parse_topology(f"cpu:{jax.device_count()}"), compiling=False)
        say(f"planned: {verdict(plan)}")
        loss = train(small).metrics["loss"]
    say(f"smoke: {STEPS} steps of {config.loss.name} in small, a random {plan.model.model_type}; loss {loss:.3f}")
    return loss


def shrink(config: Config, scratch: Path) -> Config:
    """The config in small, its model, rows and run folder below `scratch`; model and rows are written there."""
    model = tiny_like(config.model.path)
    lora = config.model.lora and replace(config.model.lora, adapter=None)
    parts = min(config.num_microbatches, 2)
    rows = parts * max(jax.device_count(), 2)
    changes = {
        "output_dir": str(scratch / "run"),
        "max_steps": STEPS,
        "global_batch_size": rows,
        "num_microbatches": parts,
        "max_runtime": None,
        "compilation_cache": None,
        "report_to": (),
        "profile": None,
        "eval_steps": config.eval_steps and 2,
        "model": replace(config.model, path=str(scratch / "model"), attention="auto", lora=lora),
        "reference": replace(config.reference, store=None),
        "data": _data(config, scratch, rows),
        "optimizer": replace(config.optimizer, skip_grad_norm=None),
        "mesh": MeshConfig(),
        "checkpoint": replace(config.checkpoint, export_steps=config.checkpoint.export_steps and 2, mirror=None),
    }
    if getattr(config.loss, "alpha", None) == "estimate":
        changes["loss"] = dataclasses.replace(config.loss, alpha=0.5)  # pyright: ignore[reportCallIssue]
    write_model(scratch / "model", model, seed=0)
    if config.reference.path is not None:
        changes["reference"] = replace(changes["reference"], path=str(scratch / "reference"))
        write_model(scratch / "reference", model, seed=1)
    return config.model_copy(update=changes)


def _data(config: Config, scratch: Path, rows: int) -> DataConfig:
    """The data section over rows that are made up: enough of them for all steps, in full."""
    data, paired = config.data, config.loss.paired and not config.data.pair_by_prompt
    prompts = round(SLOTS * rows * STEPS / (1 - data.heldout_fraction))

    def written(name: str, sources: tuple[Source, ...], prompts: int, first: int) -> tuple[Source, ...]:
        files = (scratch / f"{name}-{number}.jsonl" for number in range(len(sources)))
        pairs = enumerate(zip(files, sources, strict=True))
        return tuple(
            write_rows(file, source, prompts=prompts, paired=paired, first=first + number * prompts)
            for number, (file, source) in pairs
        )

    train = written("train", sources_of(data.train), prompts, 0)
    heldout = data.eval and written("eval", sources_of(data.eval), HELDOUT_PROMPTS, prompts * len(train))
    short = lambda limit: limit and min(limit, MAX_LENGTH // 4)  # noqa: E731
    return replace(
        data,
        train=train,
        eval=heldout,
        max_length=MAX_LENGTH,
        max_prompt_length=short(data.max_prompt_length),
        max_completion_length=short(data.max_completion_length),
        slots=min(data.slots, SLOTS),
        prepared=None,
        workers=1,
    )
