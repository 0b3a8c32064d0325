"""Peak host memory of loading and saving a sharded model folder, beside what the design allows.

python benchmarks/model_memory.py --gigabytes 2.1 --devices 8
python benchmarks/model_memory.py --gigabytes 2.1 --devices 8 --processes 2    # each loads what its devices hold

Prints one JSON line per phase: bytes of the arrays this process holds, bytes it read from files, the largest tensor,
and how far resident memory rose at its peak. Allowed over an idle process: arrays + 2 x largest tensor + 200 MB.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ALLOWANCE = 200_000_000


def main() -> None:
    options = parse()
    if options.process is not None:
        measure(options)
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        options.folder = Path(scratch) / "model"
        run(options, ["--folder", str(options.folder), "--make", "--process", "0"])
        run(options, ["--folder", str(options.folder)])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.1)
    parser.add_argument("--devices", type=int, default=1, help="simulated devices, over all processes")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the synthetic model")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(options: argparse.Namespace, more: list[str]) -> None:
    """This script in as many processes as asked for; their lines, or SystemExit where one fails."""
    each = options.devices // options.processes
    words = [sys.executable, __file__, "--gigabytes", str(options.gigabytes), "--devices", str(options.devices)]
    words += ["--processes", str(options.processes), *more]
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={each}", "JAX_PLATFORMS": "cpu"}
    numbers = [None] if "--process" in more else range(options.processes)
    started = [
        subprocess.Popen([*words, *([] if n is None else ["--process", str(n)])], env=environment) for n in numbers
    ]
    codes = [process.wait() for process in started]  # all of them, before any is given up
    if any(codes):
        raise SystemExit(1)


def shape(gigabytes: float):
    """A Llama of about so many bytes in bfloat16; its largest tensor is the embedding."""
    from rdro_jax.models import ModelConfig

    layers = max(1, round((gigabytes * 1e9 / 2 - 2 * 32768 * 2048) / 48_500_000))
    return ModelConfig("llama", 32768, 2048, layers, 16, 8, 128, 5632)


def make(options: argparse.Namespace) -> None:
    """A folder in shards of 500 MB, its numbers random but written a tensor at a time."""
    import jax
    import numpy as np

    from rdro_jax.models import abstract_params, save, save_model

    config = shape(options.gigabytes)
    save.SHARD_BYTES = 500_000_000
    block = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32).astype("bfloat16")
    params = jax.tree.map(lambda leaf: np.resize(block, leaf.shape), abstract_params(config))
    save_model(params, config, options.folder)


def measure(options: argparse.Namespace) -> None:
    if options.make:
        make(options)
        return
    import jax

    if options.processes > 1:
        jax.distributed.initialize("localhost:29871", options.processes, options.process)
    from rdro_jax.models import abstract_params, load_model, save_model
    from rdro_jax.models.folder import Tensor, open_tensors
    from rdro_jax.parallel import MeshConfig, make_mesh, param_shardings

    read = [0]
    whole = Tensor.read

    def counted(tensor, index):
        part = whole(tensor, index)
        read[0] += part.nbytes
        return part

    Tensor.read = counted
    tensors = open_tensors(options.folder)
    largest = max(tensor.nbytes for tensor in tensors.values())
    shardings = None
    if options.devices > 1:
        shardings = param_shardings(abstract_params(shape(options.gigabytes)), make_mesh(MeshConfig()))
    jax.block_until_ready(jax.jit(lambda x: x + 1)(jax.numpy.ones(8)))  # the compiler's own memory is not the loader's
    before = peak()
    params, config = load_model(options.folder, dtype="bfloat16", shardings=shardings)
    arrays = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
    files = sum(tensor.nbytes for tensor in tensors.values())
    report(options, "load", arrays=arrays, read=read[0], files=files, largest=largest, rise=peak() - before)
    save_model(params, config, options.folder.parent / "saved")
    if options.process in (None, 0):  # the first writes
        report(options, "save", arrays=arrays, largest=largest, rise=peak() - before)
        saved = open_tensors(options.folder.parent / "saved")
        assert all(saved[name].digest() == tensor.digest() for name, tensor in tensors.items())


def peak() -> int:
    """Bytes of resident memory at its highest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report(options: argparse.Namespace, phase: str, **bytes_: int) -> None:
    allowed = bytes_["arrays"] + 2 * bytes_["largest"] + ALLOWANCE
    line = {"phase": phase, "process": options.process, "devices": options.devices, **bytes_, "allowed": allowed}
    print(json.dumps(line | {"within": bytes_["rise"] <= allowed}), flush=True)


if __name__ == "__main__":
    main()
