"""The config tree: each section is a frozen dataclass of the package that reads it; here they are put together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from rdro_jax.checkpoint import CheckpointConfig
from rdro_jax.data import DataConfig
from rdro_jax.errors import ConfigError
from rdro_jax.losses import Loss
from rdro_jax.models import LoraConfig, Remat
from rdro_jax.optim import OptimizerConfig
from rdro_jax.parallel import MeshConfig

Dtype = Literal["float32", "bfloat16"]
Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
"""Path of a file or folder: no system takes an empty one, or one with a NUL in it."""


@dataclass(frozen=True)
class ModelSource:
    """Where the starting policy comes from, and in which precision it is held and computed."""

    path: Name
    """Hugging Face folder of the starting policy: config.json, *.safetensors, tokenizer files. Of a hub model,
    `hub:owner/name@revision`, a run's record has the commit."""
    dtype: Dtype = "float32"
    """Precision of the parameters. Their moments are float32 whatever it is, but see `optimizer.mu_dtype`."""
    compute_dtype: Dtype = "float32"
    """Precision of activations and matrix products; log-probs and norms are always float32."""
    attention: Literal["auto", "xla", "blocked", "cudnn", "splash"] = "auto"
    """Kernel of attention; "auto" takes what suits the platform: docs/models.md has the table."""
    lora: LoraConfig | None = None
    """Low-rank adapters to train beside the model, which then stays as it is; null trains the model itself."""
    remat: Remat = "full"
    """What the backward pass computes again: "full" each layer, a third more compute for the least memory; "named" all
    but attention; "dots" all but the products of weight matrices; "none" nothing."""


@dataclass(frozen=True)
class ReferenceSource:
    """Where the reference log-probs come from."""

    path: Name | None = None
    """Hugging Face folder or hub model of the reference; null is the starting policy itself."""
    store: Name | None = None
    """Folder that keeps reference log-probs for later runs; null is `<output_dir>/reference_store`."""


@dataclass(frozen=True)
class ProfileConfig:
    """Which steps are traced."""

    start: Annotated[int, Field(ge=1)] = 3
    """First optimizer step of the trace; the first two warm up."""
    steps: Annotated[int, Field(ge=1)] = 3
    """Optimizer steps traced."""


class Config(BaseModel):
    """A whole run. Frozen and hashable, hence a cache key and the run's record; relative paths are read from the
    working directory."""

    # strict: "8" is no number and 1 is no truth value; a config that needs guessing is a config that is wrong.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    output_dir: Name
    """Run folder: checkpoints, metrics.jsonl, the resolved config. The same folder again resumes the run."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of the data order."""
    num_train_epochs: PositiveInt = 1
    """Passes over the training data."""
    max_steps: PositiveInt | None = None
    """Optimizer steps at which training ends early; null is the whole of `num_train_epochs`."""
    global_batch_size: PositiveInt = 8
    """Packed rows per optimizer step, over all devices and micro-batches."""
    num_microbatches: PositiveInt = 1
    """Parts a batch is computed in, one after the other: less memory, the same gradient."""
    max_runtime: Annotated[float, Field(gt=0)] | None = None
    """Seconds in which the state is saved and the command ends with exit code 42, to be run again; null is no limit."""
    step_timeout: Annotated[float, Field(gt=0)] | None = 300.0
    """Seconds without the end of a step, and ten median steps, after which a process counts as stuck: it writes the
    stacks of its threads and ends by SIGABRT, exit code 134; null is never."""
    max_skipped_steps: PositiveInt = 3
    """Steps in a row not finite, or beyond `optimizer.skip_grad_norm`, at which the run ends; fewer are skipped and
    counted."""
    max_rollbacks: NonNegativeInt = 0
    """Times a run goes back to its last checkpoint instead of ending so, and leaves out the rows of the steps since."""
    compilation_cache: Name | None = "~/.cache/rdro_jax/xla"
    """Folder that keeps compiled programs for later runs, 4 GiB of them at the most; null keeps none. Where
    JAX_COMPILATION_CACHE_DIR is set, that one is used."""
    logging_steps: PositiveInt = 1
    """Optimizer steps between lines of metrics."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow", "json"], ...] = ("tensorboard",)
    """Trackers that get a copy of metrics.jsonl, which is written in any case; [] is none."""
    profile: ProfileConfig | None = None
    """Steps of which a JAX trace is written to `<output_dir>/profile`; null is none."""
    eval_steps: PositiveInt | None = None
    """Optimizer steps between evaluations on `data.eval`; null is at the end only."""
    model: ModelSource
    """The starting policy."""
    reference: ReferenceSource = ReferenceSource()
    """The reference model and the store of its log-probs."""
    data: DataConfig
    """Training and held-out rows, and how they become packed rows."""
    loss: Annotated[Loss, Field(discriminator="name")]
    """The objective; `loss.name` selects it."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW, its schedule and clipping."""
    mesh: MeshConfig = MeshConfig()
    """Devices along the data, fsdp and tensor axes."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When training state is saved and how much of it is kept."""

    @model_validator(mode="after")
    def _sections_agree(self) -> "Config":
        for problem in _disagreements(self):
            raise ConfigError(problem)
        return self

    def to_yaml(self) -> str:
        """The whole config as YAML, defaults included; loading it gives an equal config."""
        return OmegaConf.to_yaml(OmegaConf.create(self.model_dump(mode="json")))


def _disagreements(config: Config):
    """Yields `key: what is wrong` for sections that are fine alone but not together."""
    rows, parts = config.global_batch_size, config.num_microbatches
    if rows % parts:
        yield f"global_batch_size: got {rows}, wanted a multiple of num_microbatches={parts}"
    if config.eval_steps is not None and config.data.eval is None and not config.data.heldout_fraction:
        yield f"eval_steps: got {config.eval_steps}, but data.eval names no held-out file; set it or drop eval_steps"
    if getattr(config.loss, "alpha", None) == "estimate":
        yield from _lacking_for_estimate(config)
    if config.loss.paired and config.data.slots % 2:
        yield f"data.slots: got {config.data.slots}, wanted an even number: '{config.loss.name}' is over pairs"
    if config.data.eval is not None and config.data.heldout_fraction:
        yield "data.heldout_fraction: got a share of data.train beside held-out rows in data.eval; keep one of the two"
    sources = {"model.path": config.model.path, "reference.path": config.reference.path}
    for key, path in sources.items():
        if path is not None and Path(path).resolve() == Path(config.output_dir).resolve():
            yield f"output_dir: got the folder of {key}, '{path}', which the run would overwrite; name another folder"


def _lacking_for_estimate(config: Config):
    if config.data.eval is None and not config.data.heldout_fraction:
        yield "loss.alpha: estimate is taken from held-out rows; name them in data.eval, or set data.heldout_fraction"
    if config.reference.path in (None, config.model.path):
        yield (
            "loss.alpha: estimate wants a policy that tells the classes apart: name a trained one in model.path and "
            "what it was trained against in reference.path, or take alpha: data"
        )
