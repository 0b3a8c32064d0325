"""The cluster file: the one place that says where runs go. Its fields are the documentation of its keys."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from rdro_jax.config.document import read_document
from rdro_jax.config.explain import explain
from rdro_jax.config.loader import read_text
from rdro_jax.errors import ConfigError

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@=-]*$")]
"""A name as schedulers take it: nothing a shell or YAML would read otherwise."""
Label = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
"""A name as Kubernetes takes it, short enough for what is appended to it."""
Variable = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
"""Name of an environment variable."""
Folder = Annotated[str, Field(pattern=r"^[A-Za-z0-9/._~-]+$")]


Setting = Annotated[str, Field(pattern=r"^[a-z_]+(\.[a-z_]+)*=[A-Za-z0-9._-]+$")]
"""A `key=value` of a run's config."""


@dataclass(frozen=True)
class AnyCluster:
    """What every cluster file may say."""

    settings: tuple[Setting, ...] = field(default=(), kw_only=True)
    """Mesh, micro-batches and remat that suit the machine, put before a run's own `key=value` words."""
    topology_to_plan: Annotated[str, Field(pattern=r"^[a-z0-9:]+$")] | None = field(default=None, kw_only=True)
    """The machine as `rdro plan --topology` calls it; the settings are checked with it."""


@dataclass(frozen=True)
class SlurmCluster(AnyCluster):
    """A SLURM cluster whose nodes share the working directory."""

    name: Literal["slurm"]
    partition: Word | None = None
    """Partition; null is the cluster's default."""
    account: Word | None = None
    """Account that pays; null is yours."""
    nodes: PositiveInt = 1
    """Nodes of a job; one process each."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 8
    """GPUs of a node; 0 asks for none."""
    cpus_per_node: PositiveInt = 16
    """Cores of a node."""
    memory_gb: PositiveInt | None = None
    """Host memory of a node in GB; null is the cluster's default."""
    hours: PositiveInt = 24
    """Time limit; a run that reaches it saves, is requeued and goes on."""
    grace_seconds: PositiveInt = 180
    """Time before the limit at which the run is told to save."""
    environment: Folder = ".venv"
    """Virtual environment with rdro_jax, on the shared disk."""
    parallel: PositiveInt = 8
    """Tasks of a sweep's array at a time."""


@dataclass(frozen=True)
class GkeCluster(AnyCluster):
    """Google Kubernetes Engine with JobSet and Kueue installed."""

    name: Literal["gke"]
    image: Word
    """Container image with rdro_jax (launch/docker)."""
    device: Literal["tpu", "gpu"]
    """Kind of accelerator."""
    accelerator: Word
    """Value of the node label: tpu-v5-lite-podslice, tpu-v6e-slice, nvidia-h100-80gb."""
    devices_per_host: PositiveInt
    """Chips or GPUs of one node."""
    hosts: PositiveInt = 1
    """Nodes of a slice (TPU), or of the job (GPU)."""
    topology: Annotated[str, Field(pattern=r"^\d+x\d+(x\d+)?$")] | None = None
    """TPU topology, such as 4x4."""
    slices: PositiveInt = 1
    """TPU slices; more than one is multislice."""
    namespace: Label = "default"
    queue: Label = "rdro"
    """Kueue's LocalQueue."""
    volume: Label = "rdro-runs"
    """PersistentVolumeClaim mounted at /work, the working directory: configs, models, data, runs."""
    secret: Label | None = "rdro"
    """Kubernetes Secret whose keys become environment variables, such as HF_TOKEN; null is none."""
    grace_seconds: PositiveInt = 120
    """Time a run has to save when its node is taken away."""
    max_restarts: PositiveInt = 100
    """Restarts after preemption or a signal; codes 2 to 6 and 70 are never restarted."""


@dataclass(frozen=True)
class SkyCluster(AnyCluster):
    """Any cloud, through SkyPilot."""

    name: Literal["sky"]
    accelerators: Word
    """As SkyPilot names them: H100:8, tpu-v6e-8."""
    bucket: Annotated[str, Field(pattern=r"^(gs|s3|r2|azblob)://[a-z0-9][a-z0-9./_-]*$")]
    """Bucket mounted as runs/: what outlives a machine."""
    use_spot: bool = False
    """Machines that may be taken away; the run goes on elsewhere."""
    nodes: PositiveInt = 1
    """Machines of a job; one process each."""
    extra: Literal["cuda13", "tpu", "cpu"] = "cuda13"
    """Which of jax's plugins is installed."""
    runtime_version: Word | None = None
    """TPU software version, where the cloud wants one."""
    secrets: tuple[Variable, ...] = ("HF_TOKEN",)
    """Environment variables that SkyPilot passes on from yours: `--secret HF_TOKEN`; never written into a file."""


@dataclass(frozen=True)
class TpuVmCluster(AnyCluster):
    """Cloud TPU VMs as queued resources."""

    name: Literal["tpu-vm"]
    project: Word
    """Google Cloud project."""
    zone: Word
    """Such as us-east5-b."""
    accelerator_type: Word
    """Such as v6e-8, v5litepod-16."""
    runtime_version: Word
    """Such as v2-alpha-tpuv6e."""
    bucket: Annotated[str, Field(pattern=r"^gs://[a-z0-9][a-z0-9./_-]*$")]
    """Bucket mounted as runs/ on every host."""
    spot: bool = True
    """Machines that may be taken away."""
    secret: Word | None = None
    """Secret Manager's name of what the run gets as HF_TOKEN; null is none."""


Cluster = SlurmCluster | GkeCluster | SkyCluster | TpuVmCluster


class ClusterFile(BaseModel):
    """What a cluster file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    cluster: Annotated[Cluster, Field(discriminator="name")]
    """Where runs go; `name` says on what."""


def load_cluster(path: str | Path) -> Cluster:
    """The cluster that the file at `path` describes. Raises: ConfigError with file, line and key."""
    layer = read_document(read_text(Path(path)), str(path))
    try:
        cluster = ClusterFile.model_validate_json(json.dumps(layer.values)).cluster
    except ValidationError as error:
        raise ConfigError(explain(error, ClusterFile, layer.values, layer.places, str(path))) from error
    if isinstance(cluster, GkeCluster) and (cluster.device == "tpu") != (cluster.topology is not None):
        raise ConfigError(f"{path}: cluster.topology: wanted with device: tpu, and only there")
    if isinstance(cluster, GkeCluster) and cluster.device == "gpu" and cluster.slices > 1:
        raise ConfigError(f"{path}: cluster.slices: got {cluster.slices}; only TPUs come in slices")
    return cluster
