"""train(config): the whole story of a run, from its config to an aligned Hugging Face folder."""

import math
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from rdro_jax.batch import Batch
from rdro_jax.checkpoint import CheckpointWriter, load_items
from rdro_jax.config import Config, check_inputs, pin_models
from rdro_jax.data import Loader
from rdro_jax.losses import Loss
from rdro_jax.optim import make_optimizer
from rdro_jax.parallel import from_first, rows_sharding
from rdro_jax.train.alpha import resolve_loss
from rdro_jax.train.between import Between, tasks_after
from rdro_jax.train.compiling import compile_step, keep_programs
from rdro_jax.train.console import progress, say
from rdro_jax.train.dataset import (
    check_reference_logps,
    evaluate_policy,
    make_heldout_set,
    make_training_loader,
    reference_model,
)
from rdro_jax.train.exports import export_end, export_step
from rdro_jax.train.feed import Feed
from rdro_jax.train.mirror import push
from rdro_jax.train.policy import Policy, make_run_policy
from rdro_jax.train.preflight import check_space, check_versions, layout
from rdro_jax.train.program import abstract_state
from rdro_jax.train.recorder import Recorder
from rdro_jax.train.rollback import settle_step
from rdro_jax.train.run import (
    RunFolder,
    check_vocabulary,
    finished_metrics,
    locked,
    open_run,
    read_data,
    write_loss,
    write_result,
)
from rdro_jax.train.speed import Speed, tracing
from rdro_jax.train.state import TrainState, init_state, state_items
from rdro_jax.train.stopping import stop_requests
from rdro_jax.train.trackers import check_trackers
from rdro_jax.train.trained import load_base, policy_params, start_adapters
from rdro_jax.train.watchdog import PATIENCE, Watchdog, abort

Step = Callable[[TrainState, Batch], tuple[TrainState, Any]]


class RunResult(NamedTuple):
    """What a finished run leaves."""

    run_dir: Path
    """Hugging Face folder of the policy, with metrics.jsonl, config.yaml and checkpoints beside it."""
    metrics: dict[str, Any]
    """The last step's metrics, and the held-out ones under `eval_`."""


def train(config: Config) -> RunResult:
    """Align a policy as `config` says, or go on where the run in its folder stopped.

    The same config gives the same parameters, bit for bit, whether or not the run was stopped on the way.

    Raises: `RdroError` of the kind that names the fault; `rdro_jax.errors` has the exit codes.

    A run of one step on a random model of three words; a real one differs in its files only:

    >>> import json, tempfile, jax, rdro_jax as rj
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> from transformers import PreTrainedTokenizerFast
    >>> home = tempfile.TemporaryDirectory()
    >>> shape = dict(d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=16)
    >>> model = rj.ModelConfig("llama", vocab_size=8, **shape)
    >>> rj.save_model(rj.init_params(model, jax.random.key(0)), model, f"{home.name}/base")
    >>> words = Tokenizer(models.WordLevel({"?": 0, "say": 1, "tea": 2, "mud": 3}, unk_token="?"))
    >>> words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    >>> _ = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(f"{home.name}/base")
    >>> rows = [{"prompt": "say ", "completion": word, "label": word == "tea"} for word in ("tea", "mud")]
    >>> _ = Path(home.name, "rows.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
    >>> _ = Path(home.name, "run.yaml").write_text("{loss: {name: rdro}, data: {max_length: 8}}")
    >>> paths = [f"model.path={home.name}/base", f"data.train={home.name}/rows.jsonl", f"output_dir={home.name}/run"]
    >>> result = rj.train(rj.load_config(f"{home.name}/run.yaml", [*paths, "max_steps=1"]))
    >>> result.run_dir.name, f"{result.metrics['loss']:.3f} nats"  # before a change of weights 2 log 2
    ('run', '1.386 nats')
    >>> home.cleanup()
    """
    deadline = None if config.max_runtime is None else time.monotonic() + config.max_runtime
    config = pin_models(config)
    check_inputs(config)
    check_trackers(config.report_to)
    keep_programs(config.compilation_cache)
    policy = make_run_policy(config)
    from_first(lambda: check_space(config, policy))
    say(f"{check_versions()}\n{layout(config, policy)}")
    with locked(config):
        return _train(config, policy, deadline)


def _train(config: Config, policy: Policy, deadline: float | None) -> RunResult:
    """The run itself, in a folder that is ours alone."""
    run = open_run(config)
    done = finished_metrics(run)
    if done is not None:
        say(f"{run.path}: this run is finished; name another output_dir for a new one")
        return RunResult(run.path, done)
    train_examples, eval_examples = read_data(config, run.path)
    check_vocabulary(config, train_examples, eval_examples)
    loader = make_training_loader(config, policy, train_examples, run.resume_step)
    heldout = make_heldout_set(config, policy, eval_examples) if eval_examples else None

    num_steps = min(loader.num_batches, config.max_steps or loader.num_batches)
    optimizer = make_optimizer(config.optimizer, num_steps)
    loss = resolve_loss(config, run, policy, train_examples.report.alpha, heldout)
    checking = run.resume_step == 0 and config.loss.needs_reference
    if checking and config.reference.path is not None:  # before the state takes its room
        check_reference_logps(config, *reference_model(config, policy), loader)
    state = load_state(config, run, policy, optimizer, loss)
    if checking and config.reference.path is None:
        check_reference_logps(config, policy, policy_params(config, state), loader)
    write_loss(run, loss)
    _introduce(config, run, loader, loss, num_steps)

    step = compile_step(config, policy, loss, num_steps, state, loader)
    speed = Speed(config, policy)
    recorder = Recorder(config, run, loss, loader, num_steps, state, speed)
    saver = _make_writer(config, run)
    feed = Feed((batch for batch, _ in islice(loader, num_steps - run.resume_step)), rows_sharding(policy.mesh))
    with progress("training", num_steps, run.resume_step) as show, stop_requests(deadline) as stop_reason:
        between = Between(
            config=config,
            run_dir=run.path,
            judge=lambda state, go_on: evaluate_policy(
                config, policy, loss, policy_params(config, state), state.running, heldout, go_on
            ),
            publish=partial(export_step, config, policy, run),
            settle=partial(settle_step, config.max_rollbacks, run.path, saver, recorder, show),
            recorder=recorder,
            speed=speed,
            saver=saver,
            watch=_make_watchdog(config, run),
            stop_reason=stop_reason,
        )
        state = _run_steps(config, run, num_steps, feed, step, between, state)
    export_end(config, policy, run, num_steps, state, recorder.latest)
    write_result(run, recorder.latest)
    say(f"{run.path}: the policy after {num_steps} steps, as a Hugging Face folder")
    return RunResult(run.path, recorder.latest)


def load_state(
    config: Config, run: RunFolder, policy: Policy, optimizer: optax.GradientTransformation, loss: Loss
) -> TrainState:
    """State from the newest checkpoint, or of a new run from the model folder; made on its shards in one jit."""
    abstract = abstract_state(config, policy, loss, optimizer)
    frozen = () if config.model.lora is None else load_base(config, policy)
    if run.resume_step == 0:
        trained = load_base(config, policy) if config.model.lora is None else start_adapters(config, policy)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract._replace(frozen=()))
        make = jax.jit(lambda p: init_state(p, loss, optimizer), out_shardings=shardings, donate_argnums=0)
        return make(trained)._replace(frozen=frozen)
    say(f"{run.path}: resuming after step {run.resume_step}")
    return abstract._replace(**load_items(run.path, run.resume_step, state_items(abstract)), frozen=frozen)


def _introduce(config: Config, run: RunFolder, loader: Loader, loss: Loss, num_steps: int) -> None:
    report = loader.examples.report
    say(
        f"{run.path}: {report.kept} examples ({report.desirable.kept} desirable, {report.undesirable.kept} not; "
        f"alpha {report.alpha:.4f}), {report.tokens} tokens, {num_steps} steps of {config.global_batch_size} rows x "
        f"{config.data.max_length}, {loss}"
    )


def _run_steps(
    config: Config, run: RunFolder, num_steps: int, feed: Feed, step: Step, between: Between, state: TrainState
) -> TrainState:
    """The steps that are left. A step's metrics are fetched when the next one is under way, its batch on the device."""
    recorder, watch = between.recorder, between.watch
    with closing(recorder), tracing(config, run.path) as trace, watch.watching():
        if run.owed:
            state = between(run.resume_step, state, {*run.owed}, saved=True)
            watch.beat()
        for number, batch in enumerate(feed, run.resume_step + 1):
            trace(number, state)
            after, metrics = step(state, batch)
            state = between.settle(number - 1, after)
            if state is not after:
                state, metrics = step(state, batch)
            recorder.hold(number, metrics, feed.waited)
            state = between(number, state, tasks_after(config, number, num_steps))
            watch.beat()
        watch.rest()
        between.saver.wait()
    return state


def _make_writer(config: Config, run: RunFolder) -> CheckpointWriter:
    mirror = config.checkpoint.mirror
    return CheckpointWriter(run.path, config.checkpoint, partial(push, run.path, mirror) if mirror else None)


def _make_watchdog(config: Config, run: RunFolder) -> Watchdog:
    stacks = run.path / f"stacks-{jax.process_index()}.txt"
    what = f"process {jax.process_index()} has ended no step"
    patience = PATIENCE if jax.process_count() > 1 else 0.0
    return Watchdog(config.step_timeout or math.inf, partial(abort, stacks, what, patience))
