"""train(config): the whole story of a run, from its config to an aligned Hugging Face folder."""

import time
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from rdro_jax.checkpoint import CheckpointWriter, load_items
from rdro_jax.config import Config, check_inputs
from rdro_jax.data import Examples, Loader, make_loader
from rdro_jax.errors import DivergedError, RecordError, WeightError
from rdro_jax.losses import Loss
from rdro_jax.models import abstract_params, load_model, save_model
from rdro_jax.optim import make_optimizer, make_schedule
from rdro_jax.parallel import check_rows, global_arrays, make_mesh, rows_sharding
from rdro_jax.train.console import Report, progress, say
from rdro_jax.train.heldout import heldout_metrics
from rdro_jax.train.metrics import MetricsWriter, Window
from rdro_jax.train.policy import Policy, make_policy
from rdro_jax.train.reference import fill_reference_logps, reference_fingerprint
from rdro_jax.train.run import METRICS_FILE, RunFolder, finished_metrics, identity, open_run, read_data, write_result
from rdro_jax.train.scoring import score_examples
from rdro_jax.train.state import TrainState, init_state, state_shardings
from rdro_jax.train.step import make_train_step


class RunResult(NamedTuple):
    """What a finished run leaves."""

    run_dir: Path
    """Hugging Face folder of the policy, with metrics.jsonl, config.yaml and checkpoints beside it."""
    metrics: dict[str, Any]
    """The last step's metrics, and the held-out ones under `eval_`."""


class DataSet(NamedTuple):
    """Examples and the reference's log-prob of each, in nats; zeros for a loss without a reference."""

    examples: Examples
    reference_logps: np.ndarray


def train(config: Config) -> RunResult:
    """Align a policy as `config` says, or go on where the run in its folder stopped.

    The same config gives the same parameters, bit for bit, whether or not the run was stopped on the way.

    Raises: `RdroError` of the kind that names the fault; `rdro_jax.errors` has the exit codes.
    """
    check_inputs(config)
    run = open_run(config)
    done = finished_metrics(run)
    if done is not None:
        say(f"{run.path}: this run is finished; name another output_dir for a new one")
        return RunResult(run.path, done)
    mesh = make_mesh(config.mesh)
    check_rows(mesh, config.global_batch_size, config.num_microbatches)
    source = config.model
    policy = make_policy(source.path, mesh, compute_dtype=source.compute_dtype, remat=source.remat)
    train_examples, eval_examples = read_data(config, run)
    loss = config.loss.resolve(train_examples.report.alpha)
    train_set = _with_reference(train_examples, config, policy)
    eval_set = _with_reference(eval_examples, config, policy) if eval_examples else None

    loader = _make_loader(config, train_set, run.resume_step)
    num_steps = min(loader.num_batches, config.max_steps or loader.num_batches)
    optimizer = make_optimizer(config.optimizer, num_steps)
    state = _load_state(config, run, policy, optimizer)
    if run.resume_step == 0 and config.loss.needs_reference and config.reference.path is None:
        check_policy_is_reference(policy, state.params, loader)
    _introduce(config, run, train_set, loss, num_steps)

    step = _compile_step(config, policy, loss, optimizer, state, loader)
    evaluate = lambda params: _evaluate(config, policy, loss, params, eval_set)  # noqa: E731
    state, metrics = _run_steps(config, run, step, evaluate, state, loader, num_steps)
    save_model(state.params, policy.model, run.path, base=config.model.path)
    write_result(run, metrics)
    say(f"{run.path}: the policy after {num_steps} steps, as a Hugging Face folder")
    return RunResult(run.path, metrics)


def _with_reference(examples: Examples, config: Config, policy: Policy) -> DataSet:
    """Examples with their reference log-probs, from the store or from the reference model, loaded only if needed."""
    if not config.loss.needs_reference:
        return DataSet(examples, np.zeros(len(examples.lengths), np.float32))
    directory = config.reference.path or config.model.path
    store = Path(config.reference.store or Path(config.output_dir) / "reference_store")

    def score(known):
        params, _ = load_model(directory, dtype=config.model.dtype, shardings=policy.param_shardings)
        return _score(examples, config, policy, params, known=known, title="reference log-probs")

    fingerprint = reference_fingerprint(directory, config.model.compute_dtype)
    return DataSet(examples, fill_reference_logps(store, fingerprint, examples, score))


def _score(examples: Examples, config: Config, policy: Policy, params: Any, *, known=None, title: str) -> np.ndarray:
    return score_examples(
        examples,
        lambda batch: policy.score(params, batch),
        rows=config.global_batch_size // config.num_microbatches,
        max_length=config.data.max_length,
        slots=config.data.slots,
        sharding=rows_sharding(policy.mesh),
        known=known,
        title=title,
    )


def _make_loader(config: Config, data: DataSet, start_step: int) -> Loader:
    return make_loader(
        data.examples,
        global_batch_size=config.global_batch_size,
        max_length=config.data.max_length,
        slots=config.data.slots,
        seed=config.seed,
        num_epochs=config.num_train_epochs,
        batching=config.data.batching,
        reference_logps=data.reference_logps,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
        start_step=start_step,
    )


def _load_state(config: Config, run: RunFolder, policy: Policy, optimizer: optax.GradientTransformation) -> TrainState:
    """State from the newest checkpoint, or of a new run from the model folder; made on its shards in one jit."""
    shapes = abstract_params(policy.model, config.model.dtype)
    shardings = state_shardings(shapes, optimizer, policy.mesh)
    if run.resume_step == 0:
        params, _ = load_model(config.model.path, dtype=config.model.dtype, shardings=policy.param_shardings)
        return jax.jit(lambda p: init_state(p, optimizer), out_shardings=shardings, donate_argnums=0)(params)
    say(f"{run.path}: resuming after step {run.resume_step}")
    abstract = jax.eval_shape(lambda p: init_state(p, optimizer), shapes)
    abstract = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), abstract, shardings
    )
    return TrainState(**load_items(run.path, run.resume_step, abstract._asdict()))


def check_policy_is_reference(policy: Policy, params: Any, loader: Loader) -> None:
    """Raise `WeightError` unless policy and reference agree on the first batch: before step 1 they are one model."""
    batch, members = loader[0]
    logps = np.asarray(policy.score(params, global_arrays(batch, rows_sharding(policy.mesh))))
    here = members >= 0
    gap = np.abs(logps[: len(here)] - batch.reference_logps)[here]
    # Rows are packed otherwise here than in scoring, which reorders float sums; bfloat16 keeps 8 bits.
    allowed = 1e-3 + np.abs(logps[: len(here)][here]) * (1e-5 if policy.model.compute_dtype == "float32" else 1e-2)
    if (gap > allowed).any():
        raise WeightError(
            f"step 0: policy and reference log-probs differ by up to {gap.max():.3g} nats on the first batch though "
            "they are the same model; remove the reference store (reference.store) and start again"
        )


def _introduce(config: Config, run: RunFolder, data: DataSet, loss: Loss, num_steps: int) -> None:
    report = data.examples.report
    say(
        f"{run.path}: {report.kept} examples ({report.desirable.kept} desirable, {report.undesirable.kept} not; "
        f"alpha {report.alpha:.4f}), {report.tokens} tokens, {num_steps} steps of {config.global_batch_size} rows x "
        f"{config.data.max_length}, {loss}"
    )


def _compile_step(config, policy, loss, optimizer, state, loader):
    """The step compiled ahead of time: a wrong shape raises here, and no later call can compile again."""
    step = make_train_step(policy.logps, loss, optimizer, num_microbatches=config.num_microbatches)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(step, out_shardings=(shardings, None), donate_argnums=0)
    batch = global_arrays(loader[0][0], rows_sharding(policy.mesh))
    start = time.monotonic()
    compiled = jitted.lower(state, batch).compile()
    say(f"compiled the step in {time.monotonic() - start:.1f} s")
    return lambda state, batch: compiled(state, global_arrays(batch, rows_sharding(policy.mesh)))


def _run_steps(config, run, step, evaluate, state, loader, num_steps) -> tuple[TrainState, dict[str, Any]]:
    """The steps that are left. A step's metrics are fetched after the next step is under way."""
    saver = CheckpointWriter(run.path, config.checkpoint)
    with progress("training", num_steps, run.resume_step) as show:
        recorder = Recorder(config, run, loader, num_steps, show)
        for number, (batch, _) in enumerate(islice(loader, num_steps - run.resume_step), run.resume_step + 1):
            state, sums = step(state, batch)
            recorder.fetch()
            recorder.hold(number, sums)
            last = number == num_steps
            if last or _due(number, config.eval_steps) or _due(number, config.checkpoint.save_steps):
                recorder.fetch()
            if last or _due(number, config.eval_steps):
                recorder.write(number, evaluate(state.params))
            if last or _due(number, config.checkpoint.save_steps):
                saver.save(number, state._asdict(), {"config": identity(config)})
        saver.wait()
    return state, recorder.latest


def _due(step: int, interval: int | None) -> bool:
    return interval is not None and step % interval == 0


class Recorder:
    """Turns the sums of steps into lines of metrics.jsonl, and refuses numbers that are not finite."""

    def __init__(self, config: Config, run: RunFolder, loader: Loader, num_steps: int, show: Report):
        self._config, self._loader, self._show, self._num_steps = config, loader, show, num_steps
        self._schedule = make_schedule(config.optimizer, num_steps)
        self._writer = MetricsWriter(run.path / METRICS_FILE, resume_step=run.resume_step)
        self._held: tuple[int, Any] | None = None
        self._window, self._since = Window(), time.monotonic()
        self.latest: dict[str, Any] = {}
        """The newest value of every metric."""

    def hold(self, number: int, sums: Any) -> None:
        """Keep the sums of a step that may still be running."""
        self._held = number, sums

    def fetch(self) -> None:
        """Wait for the held step, and log its window where one ends."""
        if self._held is None:
            return
        number, sums = self._held
        self._held = None
        sums = {name: float(value) for name, value in jax.device_get(sums).items()}
        _refuse_useless(number, sums)
        self._window.add(sums)
        if _due(number, self._config.logging_steps) or number == self._num_steps:
            now = time.monotonic()
            rate = float(np.asarray(self._schedule(number - 1)))
            line = {"epoch": round(self._loader.epoch(number), 4), "learning_rate": rate, **self._window.means()}
            self.write(number, line | self._window.rates(now - self._since))
            self._show({"step": number} | self.latest)
            self._window, self._since = Window(), now

    def write(self, number: int, line: dict[str, Any]) -> None:
        """Append a line of metrics."""
        if line:
            self._writer.write({"step": number} | line)
            self.latest |= line


def _refuse_useless(number: int, sums: dict[str, float]) -> None:
    if not np.isfinite(sums["loss"]) or not np.isfinite(sums["grad_norm"]):
        raise DivergedError(
            f"step {number}: loss {sums['loss'] / sums['weight']:.4g}, gradient norm {sums['grad_norm']:.4g}: not "
            "finite; lower optimizer.learning_rate, or start again from the last checkpoint with another seed"
        )
    if number == 1 and sums["grad_norm"] == 0:
        raise RecordError(
            "step 1: the gradient is exactly 0, so nothing would be learnt: no scored completion token reaches the "
            "loss; look at data_report.json and at the chat template"
        )


def _evaluate(config: Config, policy: Policy, loss: Loss, params: Any, data: DataSet | None) -> dict[str, Any]:
    """Held-out metrics under `eval_`; none without held-out data."""
    if data is None:
        return {}
    logps = _score(data.examples, config, policy, params, title="held-out log-probs")
    examples = data.examples
    lengths = examples.lengths - examples.prompt_lengths
    metrics = heldout_metrics(loss, logps, data.reference_logps, lengths, examples.desirable)
    return {f"eval_{name}": value for name, value in metrics.items()}
