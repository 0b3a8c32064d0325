"""Examples of a run with what the reference says of them: training batches, and the held-out set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from rdro_jax.config import Config
from rdro_jax.data import Examples, Loader, make_loader, prompt_rates, take_examples
from rdro_jax.errors import ConfigError, WeightError
from rdro_jax.losses import LossBase, LossInputs
from rdro_jax.models import Params, load_model
from rdro_jax.parallel import from_first, host_share, rows_sharding
from rdro_jax.train.heldout import heldout_metrics, heldout_pictures
from rdro_jax.train.policy import Policy, make_policy
from rdro_jax.train.reference import fill_reference_logps, reference_fingerprint
from rdro_jax.train.scoring import score_batches, score_examples
from rdro_jax.train.trained import starting_params

Logps = Float32[np.ndarray, "examples"]

CHECKED_EXAMPLES = 64
"""Examples scored anew at the start of a run, to see that the stored log-probs are the reference's."""


def make_training_loader(config: Config, policy: Policy, examples: Examples, start_step: int) -> Loader:
    """Batches of this host from `start_step` on, with everything the loss reads."""
    host_index, host_count = host_share(rows_sharding(policy.mesh))
    loader = _make_loader(
        config,
        examples,
        seed=config.seed,
        num_epochs=config.num_train_epochs,
        batching=config.data.batching,
        reference_logps=reference_logps(config, policy, examples),
        host_index=host_index,
        host_count=host_count,
        start_step=start_step,
        prompt_alpha=_prompt_alpha(config, examples),
    )
    if loader.mismatched is None:
        return loader
    return loader.with_mismatched_logps(reference_logps(config, policy, loader.mismatched_examples()))


def reference_logps(config: Config, policy: Policy, examples: Examples) -> Logps:
    """Reference log-prob of every example, in nats; zeros for a loss without a reference.

    From the store, and what it lacks from the reference model, which is loaded only then.
    """
    if not config.loss.needs_reference:
        return np.zeros(len(examples.lengths), np.float32)

    def score(known):
        reference, params = reference_model(config, policy)
        score_batch = lambda batch: reference.score(params, batch)  # noqa: E731
        how = _scoring(config, policy, "reference log-probs")
        return score_batches(examples, score_batch, **how, known=known)

    lora = config.model.lora
    adapter = lora.adapter if lora is not None and config.reference.path is None else None
    directory = config.reference.path or config.model.path
    types = config.model.dtype, config.model.compute_dtype
    fingerprint = from_first(lambda: reference_fingerprint(directory, *types, adapter))
    return fill_reference_logps(reference_store(config), fingerprint, examples, score)


def reference_store(config: Config) -> Path:
    """Folder of the reference log-probs of a run."""
    return Path(config.reference.store or Path(config.output_dir) / "reference_store")


def reference_model(config: Config, policy: Policy) -> tuple[Policy, Params]:
    """The reference and its parameters: the starting policy, or the model of `reference.path`."""
    if config.reference.path is None:
        return policy, starting_params(config, policy)
    # An architecture of its own: a reference may be of another size, or have another rope.
    reference = make_policy(config.reference.path, policy.mesh, config.model)
    params, _ = load_model(config.reference.path, dtype=config.model.dtype, shardings=reference.param_shardings)
    return reference, params


def check_reference_logps(config: Config, reference: Policy, params: Params, loader: Loader) -> None:
    """Score some training examples anew, drawn by the run's seed, and compare with what the run will train on.

    Raises: WeightError naming the store.
    """
    assert loader.reference_logps is not None, "a loader of examples with reference log-probs"
    count = len(loader.reference_logps)
    chosen = np.sort(np.random.default_rng(config.seed).permutation(count)[:CHECKED_EXAMPLES])
    logps = score_policy(config, reference, params, take_examples(loader.examples, chosen), title="checking reference")
    gap = np.abs(logps - loader.reference_logps[chosen])
    # Rows are packed otherwise here than in scoring, which reorders float sums; bfloat16 keeps 8 bits.
    wrong = ~(gap <= 1e-3 + np.abs(logps) * (1e-5 if reference.model.compute_dtype == "float32" else 1e-2))
    if wrong.any():
        raise WeightError(
            f"reference.store: {reference_store(config)}: {wrong.sum()} of {len(chosen)} log-probs differ by up to "
            f"{gap.max():.3g} nats from what the reference gives now; remove the folder and they are computed again"
        )


def score_policy(
    config: Config,
    policy: Policy,
    params: Params,
    examples: Examples,
    *,
    title: str,
    go_on: Callable[[], None] = lambda: None,
) -> Logps:
    """Completion log-prob of every example under `params`, in nats, by batches of the shape of a micro-batch.

    `go_on` is called after each batch, and may raise.
    """
    how = _scoring(config, policy, title)
    return score_examples(examples, lambda batch: policy.score(params, batch), go_on=go_on, **how)


def _scoring(config: Config, policy: Policy, title: str) -> dict[str, Any]:
    return {
        "rows": config.global_batch_size // config.num_microbatches,
        "max_length": config.data.max_length,
        "slots": config.data.slots,
        "sharding": rows_sharding(policy.mesh),
        "title": title,
    }


def fill_reference_store(config: Config, policy: Policy, training: Examples, heldout: Examples | None) -> Path:
    """The run's store, after what it lacked was computed, mismatched examples included.

    Raises: ConfigError for a loss without a reference; else as `reference_logps`.
    """
    if not config.loss.needs_reference:
        raise ConfigError(f"loss.name: '{config.loss.name}' reads no reference; leave out --reference")
    make_training_loader(config, policy, training, 0)
    if heldout is not None:
        make_heldout_set(config, policy, heldout)
    return reference_store(config)


class HeldoutSet(NamedTuple):
    """Held-out examples, and what evaluation reads beside the policy's log-probs."""

    examples: Examples
    reference_logps: Logps
    """Nats."""
    prompt_alpha: Logps | None
    """Share of desirable completions of each example's prompt, where the loss reads it."""
    mismatched: "HeldoutSet | None"
    """Their prompts with each other's completions, where the loss reads them."""

    def inputs(self, policy_logps: Logps) -> LossInputs:
        """What a loss reads, as numpy arrays."""
        x = self.examples
        lengths = x.lengths - x.prompt_lengths
        return LossInputs(policy_logps, self.reference_logps, lengths, x.desirable, x.weight, (), self.prompt_alpha)  # pyright: ignore[reportArgumentType]


def make_heldout_set(config: Config, policy: Policy, examples: Examples) -> HeldoutSet:
    """The held-out examples with everything the loss reads."""
    loader = _make_loader(config, examples, batching="sequential")
    mismatched = None
    if loader.mismatched is not None:
        others = loader.mismatched_examples()
        mismatched = HeldoutSet(others, reference_logps(config, policy, others), None, None)
    known = reference_logps(config, policy, examples)
    return HeldoutSet(examples, known, _prompt_alpha(config, examples), mismatched)


class Evaluation(NamedTuple):
    """What held-out rows say of a policy."""

    metrics: dict[str, Any]
    """Figures, their names under `eval_`."""
    pictures: dict[str, Any]
    """Histograms and curves: `train.heldout.heldout_pictures`."""


def evaluate_policy(
    config: Config,
    policy: Policy,
    loss: LossBase,
    params: Params,
    running: Any,
    heldout: HeldoutSet | None,
    go_on: Callable[[], None] = lambda: None,
) -> Evaluation | None:
    """What the held-out set says; None without one. `go_on` is called after each batch, and may raise."""
    if heldout is None:
        return None

    def inputs(part: HeldoutSet) -> LossInputs:
        return part.inputs(score_policy(config, policy, params, part.examples, title="held-out log-probs", go_on=go_on))

    mismatched = inputs(heldout.mismatched) if heldout.mismatched is not None else None
    prompts, paired = heldout.examples.prompt_hashes, heldout.examples.report.format == "paired"
    x = inputs(heldout)
    metrics = heldout_metrics(loss, x, mismatched=mismatched, running=running, prompts=prompts, paired=paired)
    return Evaluation({f"eval_{name}": value for name, value in metrics.items()}, heldout_pictures(loss, x))


def _make_loader(config: Config, examples: Examples, **more: Any) -> Loader:
    return make_loader(
        examples,
        global_batch_size=config.global_batch_size,
        max_length=config.data.max_length,
        slots=config.data.slots,
        mismatched=config.loss.needs_mismatched,
        **more,
    )


def _prompt_alpha(config: Config, examples: Examples) -> Logps | None:
    return prompt_rates(examples) if config.loss.needs_prompt_alpha else None
