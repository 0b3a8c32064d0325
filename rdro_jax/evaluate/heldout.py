"""`rdro eval`: a policy and its reference over labelled rows, the same program and the same numbers as in training."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
from jax.sharding import Mesh
from pydantic import Field, TypeAdapter

from rdro_jax.checkpoint import list_steps, load_items
from rdro_jax.config import Config, ModelSource, ReferenceSource, load_config
from rdro_jax.data import DataConfig, Examples, check_words, load_examples, load_tokenizer
from rdro_jax.data.config import sources_of
from rdro_jax.errors import ConfigError
from rdro_jax.evaluate.likelihood import Scorer, check_alone
from rdro_jax.evaluate.onpolicy import Load, kl_both_ways
from rdro_jax.generate.load import spread_mesh
from rdro_jax.losses import RDRO, Loss, LossInputs
from rdro_jax.models import Params, load_model, load_model_config
from rdro_jax.parallel import check_rows, replicated
from rdro_jax.run_files import CONFIG_FILE, LOSS_FILE
from rdro_jax.train.dataset import HeldoutSet, make_heldout_set, reference_model, score_policy
from rdro_jax.train.heldout import heldout_intervals, heldout_metrics, heldout_pictures
from rdro_jax.train.policy import Policy, make_policy
from rdro_jax.train.program import placed
from rdro_jax.train.saved import run_mesh, saved_trained, sound_step, with_base

ROWS_PER_DEVICE = 2
LOSS: TypeAdapter[Loss] = TypeAdapter(Annotated[Loss, Field(discriminator="name")])


class Subject(NamedTuple):
    """What is evaluated, and how."""

    config: Config
    """Of the run, or what a folder that no run wrote is given instead; its `loss` is the one to measure."""
    folder: str
    """Where tokenizer and architecture are, and the parameters where `step` is None."""
    run: Path | None
    step: int | None
    """Of the checkpoint whose parameters are meant."""


def evaluate(
    model: str | Path,
    *,
    reference: str | Path | None = None,
    data: str | Path | None = None,
    max_length: int | None = None,
    slots: int | None = None,
    alpha: float | None = None,
    step: int | None = None,
    completions: int = 0,
    max_new_tokens: int = 256,
) -> dict[str, Any]:
    """Held-out metrics of a policy (`train.heldout.heldout_metrics`), their intervals by prompt, histogram and curve.

    `model` is a Hugging Face folder, a run folder or a `checkpoint-N` in one. Of a run the loss as trained, sections
    `model` and `data`, the reference and the held-out rows are the run's unless named here; its parameters are those it
    exported at its end, or of the checkpoint `step`, by default the newest. Of any other folder the loss is RDRO in
    float32, rows of 1024 tokens, and `alpha`, the share of desirable rows, that of `data`.
    `data` is a JSONL file of labelled rows. With `completions` the policy writes so many of at most `max_new_tokens`
    tokens to each prompt, and so does the reference: `onpolicy.kl_both_ways`. Policy and reference are loaded one after
    the other, so that one model's memory is enough.

    Raises: ConfigError where something is neither named nor known of a run, or the models have no common vocabulary,
    CheckpointError for one that is missing.
    """
    if completions:
        check_alone()
    subject = _subject(model, step, reference, data)
    told = {"max_length": max_length, "slots": slots}
    section = dataclasses.replace(subject.config.data, **{name: n for name, n in told.items() if n is not None})
    config = subject.config.model_copy(update={"data": section})
    examples = _read(config, subject.folder, one_class=alpha is not None)
    loss = config.loss
    if alpha is not None or getattr(loss, "alpha", 0) == "data":
        if not hasattr(loss, "alpha"):
            raise ConfigError(f"--alpha: got {alpha}; the run's loss, {loss.name}, has no alpha")
        loss = dataclasses.replace(loss, alpha=examples.report.alpha if alpha is None else alpha)  # pyright: ignore[reportCallIssue]
    with tempfile.TemporaryDirectory() as store:
        source = dataclasses.replace(config.reference, store=store)
        return _figures(
            subject._replace(config=config.model_copy(update={"loss": loss, "reference": source})),
            examples,
            completions=completions,
            max_new_tokens=max_new_tokens,
        )


def _figures(subject: Subject, examples: Examples, *, completions: int, max_new_tokens: int) -> dict[str, Any]:
    config, loss = subject.config, subject.config.loss
    policy = make_policy(subject.folder, run_mesh(config), config.model)
    try:
        check_rows(policy.mesh, config.global_batch_size, config.num_microbatches)
    except ConfigError:  # a machine of other devices than the run's
        size = ROWS_PER_DEVICE * policy.mesh.size
        config = config.model_copy(update={"global_batch_size": size, "num_microbatches": 1})
    heldout = make_heldout_set(config, policy, examples)
    scored, mismatched = _scored(subject, config, policy, heldout)
    of: Any = {
        "mismatched": mismatched,
        "running": _running(subject, policy.mesh),
        "prompts": examples.prompt_hashes,
        "paired": examples.report.format == "paired",
    }
    metrics = heldout_metrics(loss, scored, **of)
    intervals = heldout_intervals(loss, scored, **of)
    if completions:
        drawn = kl_both_ways(*_models(subject), examples, completions=completions, max_new_tokens=max_new_tokens)
        metrics, intervals = metrics | drawn[0], intervals | drawn[1]
    return metrics | {"intervals": intervals, **heldout_pictures(loss, scored)}


def _scored(
    subject: Subject, config: Config, policy: Policy, heldout: HeldoutSet
) -> tuple[LossInputs, LossInputs | None]:
    """What the loss reads of the held-out rows and of the mismatched ones; the parameters are let go."""
    params = _params(subject, policy)
    of_policy = lambda part: score_policy(config, policy, params, part.examples, title="policy log-probs")  # noqa: E731
    others = heldout.mismatched
    return heldout.inputs(of_policy(heldout)), None if others is None else others.inputs(of_policy(others))


def _models(subject: Subject) -> tuple[Load, Load]:
    """What loads the policy, and what loads the reference, over all devices.

    Both compute in float32: by a cache or in one piece, bfloat16 would round one completion in two ways.
    """
    source = dataclasses.replace(subject.config.model, compute_dtype="float32", attention="auto")
    config = subject.config.model_copy(update={"model": source})

    def spread(folder: str) -> Policy:
        return make_policy(folder, spread_mesh(load_model_config(folder)), source)

    def policy() -> Scorer:
        of = spread(subject.folder)
        return Scorer(_params(subject._replace(config=config), of), of.model, of.mesh)

    def reference() -> Scorer:
        of, params = reference_model(config, spread(config.reference.path or config.model.path))
        return Scorer(params, of.model, of.mesh)

    return policy, reference


def _subject(model: str | Path, step: int | None, reference: str | Path | None, data: str | Path | None) -> Subject:
    folder = Path(model)
    if folder.name.startswith("checkpoint-") and (folder.parent / CONFIG_FILE).exists():
        number = folder.name.removeprefix("checkpoint-")
        folder, step = folder.parent, int(number) if number.isdecimal() else step
    if not (folder / CONFIG_FILE).exists() or not (folder / LOSS_FILE).exists():
        return _plain(str(model), step, reference, data)
    config = load_config(folder / CONFIG_FILE)
    told = json.loads((folder / LOSS_FILE).read_text())
    loss = LOSS.validate_python({name: value for name, value in told.items() if name not in ("floor", "log_bound")})
    section = config.data
    if data is not None:
        like = sources_of(config.data.eval or config.data.train)[0]
        source = dataclasses.replace(like, path=str(data), split=None, revision=None, weight=1.0, max_samples=None)
        section = dataclasses.replace(section, eval=(source,), heldout_fraction=0.0)
    elif section.eval is None and not section.heldout_fraction:
        raise ConfigError(f"--data: the run {folder} has no held-out rows of its own; name a file of them")
    named = ReferenceSource(path=str(reference)) if reference is not None else config.reference
    config = config.model_copy(update={"loss": loss, "data": section, "reference": named})
    if step is None and (folder / "config.json").exists():
        return Subject(config, str(folder), folder, None)
    return Subject(config, config.model.path, folder, sound_step(folder, step))


def _plain(model: str, step: int | None, reference: str | Path | None, data: str | Path | None) -> Subject:
    for name, value in (("--reference", reference), ("--data", data)):
        if value is None:
            raise ConfigError(f"{name}: wanted with '{model}', which is no folder of a run")
    if step is not None:
        raise ConfigError(f"--step: got {step}; '{model}' is no folder of a run")
    config = Config(
        output_dir="eval",
        global_batch_size=ROWS_PER_DEVICE * jax.device_count(),
        model=ModelSource(path=model),
        reference=ReferenceSource(path=str(reference)),
        data=DataConfig(train=str(data), eval=str(data), max_length=1024),
        loss=RDRO(),
    )
    return Subject(config, model, None, None)


def _read(config: Config, folder: str, *, one_class: bool) -> Examples:
    """The held-out rows as the run reads them; with `one_class` those of one class will do."""
    rows, loss = config.data, config.loss
    examples = load_examples(
        rows.train if rows.heldout_fraction else rows.eval,  # pyright: ignore[reportArgumentType]
        load_tokenizer(folder),
        rows,
        require_label=loss.needs_labels and (loss.paired or not one_class),
        layout=loss.layout,
        side="heldout" if rows.heldout_fraction else "all",
    )
    folders = dict.fromkeys([folder, config.reference.path or config.model.path])
    check_words(examples.tokens, {name: load_model_config(name).vocab_size for name in folders})
    return examples


def _params(subject: Subject, policy: Policy) -> Params:
    config = subject.config
    if subject.step is None:
        return load_model(subject.folder, dtype=config.model.dtype, shardings=policy.param_shardings)[0]
    assert subject.run is not None, "checkpoints are a run's"
    trained = saved_trained(subject.run, config, policy, subject.step)
    return with_base(config, policy, trained, subject.step)


def _running(subject: Subject, mesh: Mesh) -> Any:
    """Running statistics of the loss (BCO's shift) at the step evaluated; None where no checkpoint has them."""
    start = subject.config.loss.init_running()
    steps = [] if subject.run is None else list_steps(subject.run)
    if not steps or not jax.tree.leaves(start):
        return None
    assert subject.run is not None
    shapes = jax.eval_shape(lambda: start)
    where = jax.tree.map(lambda _: replicated(mesh), shapes)
    return load_items(subject.run, subject.step or steps[-1], {"running": placed(shapes, where)})["running"]
