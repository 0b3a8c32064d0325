"""Examples of a run with what the reference says of them: training batches, and the held-out set."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from rdro_jax.config import Config
from rdro_jax.data import Examples, Loader, make_loader, prompt_rates
from rdro_jax.losses import LossBase, LossInputs
from rdro_jax.models import Params, load_model
from rdro_jax.parallel import from_first, host_share, rows_sharding
from rdro_jax.train.heldout import heldout_metrics
from rdro_jax.train.policy import Policy, make_policy
from rdro_jax.train.reference import fill_reference_logps, reference_fingerprint
from rdro_jax.train.scoring import score_examples
from rdro_jax.train.trained import starting_params

Logps = Float32[np.ndarray, "examples"]


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
    directory = config.reference.path or config.model.path
    store, title = Path(config.reference.store or Path(config.output_dir) / "reference_store"), "reference log-probs"

    def score(known):
        if config.reference.path is None:
            return score_policy(config, policy, starting_params(config, policy), examples, known=known, title=title)
        # An architecture of its own: a reference may be of another size, or have another rope.
        reference = make_policy(directory, policy.mesh, config.model)
        params, _ = load_model(directory, dtype=config.model.dtype, shardings=reference.param_shardings)
        return score_policy(config, reference, params, examples, known=known, title=title)

    lora = config.model.lora
    adapter = lora.adapter if lora is not None and config.reference.path is None else None
    fingerprint = from_first(lambda: reference_fingerprint(directory, config.model.compute_dtype, adapter))
    return fill_reference_logps(store, fingerprint, examples, score)


def score_policy(
    config: Config, policy: Policy, params: Params, examples: Examples, *, known: Logps | None = None, title: str
) -> Logps:
    """Completion log-prob of every example under `params`, in nats, by batches of the shape of a micro-batch."""
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


def evaluate(
    config: Config, policy: Policy, loss: LossBase, params: Params, running: Any, heldout: HeldoutSet | None
) -> dict[str, Any]:
    """Held-out metrics under `eval_`; none without a held-out set."""
    if heldout is None:
        return {}

    def inputs(part: HeldoutSet) -> LossInputs:
        return part.inputs(score_policy(config, policy, params, part.examples, title="held-out log-probs"))

    mismatched = inputs(heldout.mismatched) if heldout.mismatched is not None else None
    prompts = heldout.examples.prompt_hashes
    metrics = heldout_metrics(loss, inputs(heldout), mismatched=mismatched, running=running, prompts=prompts)
    return {f"eval_{name}": value for name, value in metrics.items()}


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
