"""Completions of several tokens: a prefix tree small enough to enumerate, as a table and through the real decoder."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64

from rdro_jax.losses import rdro
from rdro_jax.study.consistency import sft_on_preferred
from rdro_jax.study.decoder import DecoderErrors, align_decoders
from rdro_jax.study.fit import ExampleLoss, expected_loss, minimise
from rdro_jax.study.report import Check, Curve, Options, Panel, StudyReport
from rdro_jax.study.worlds import (
    ALPHA,
    Shares,
    World,
    draw_counts,
    draw_distributions,
    population,
    total_variation,
)

SYMBOLS = 3
END = SYMBOLS
"""The end-of-turn token, which closes every completion."""
MAX_TOKENS = 4
"""Longest completion, its end of turn included."""
SIZES = (1_000, 8_000, 64_000)
TREES_PER_SEED, DECODER_TREES = 4, 3

PREFIXES = [prefix for length in range(MAX_TOKENS - 1) for prefix in product(range(SYMBOLS), repeat=length)]
"""Where a next token is chosen; after three symbols only the end is left."""
COMPLETIONS = [(*symbols, END) for length in range(MAX_TOKENS) for symbols in product(range(SYMBOLS), repeat=length)]
"""All 40 of them."""
LENGTHS = np.array([len(completion) for completion in COMPLETIONS])


def choices() -> Float64[np.ndarray, "completions prefixes tokens"]:
    """1 where a completion takes a token at a prefix."""
    taken = np.zeros((len(COMPLETIONS), len(PREFIXES), SYMBOLS + 1))
    for number, completion in enumerate(COMPLETIONS):
        for place, token in enumerate(completion[: MAX_TOKENS - 1]):
            taken[number, PREFIXES.index(completion[:place]), token] = 1
    return taken


CHOICES = choices()


def draw_trees(random: np.random.Generator, count: int) -> World:
    """Distributions over the 40 completions, the next token at each prefix 0.98 Dirichlet(0.7) + 0.02 / 4."""
    next_token = draw_distributions(random, (2, count, len(PREFIXES)), SYMBOLS + 1)
    return World(*np.exp(np.einsum("wcpt,npt->wcn", np.log(next_token), CHOICES)))


def fit_tree(
    loss: ExampleLoss, reference: Float64[np.ndarray, "worlds completions"], shares: Shares
) -> Float64[np.ndarray, "worlds completions"]:
    """The table of next-token probabilities that minimises the mean loss, as probabilities of completions."""

    def completion_logps(logits: Float[Array, "parameters"]) -> Float[Array, "completions"]:
        next_token = jax.nn.log_softmax(logits.reshape(len(PREFIXES), SYMBOLS + 1))
        return jnp.einsum("pt,npt->n", next_token, jnp.asarray(CHOICES))

    def objective(logits, data):
        reference_logps, shares = data
        return expected_loss(loss, completion_logps(logits), reference_logps, shares)

    # The reference's own table: from a flat one, one tree in twenty ended in another valley.
    start = np.log(np.einsum("wn,npt->wpt", reference, CHOICES)).reshape(len(reference), -1)
    logits = minimise(objective, start, (np.log(reference), shares))
    with jax.enable_x64(True):
        return np.exp(np.asarray(jax.vmap(completion_logps)(jnp.asarray(logits))))


def per_token(
    policy_logps: Float[Array, "examples"],
    reference_logps: Float[Array, "examples"],
    desirable: Bool[Array, "examples"],
) -> Float[Array, "examples"]:
    """RDRO on log-ratios divided by the completion's length: the biased form."""
    lengths = jnp.tile(jnp.asarray(LENGTHS), 2)
    return rdro(policy_logps / lengths, reference_logps / lengths, desirable, alpha=ALPHA)


SEQUENCE_SUM: ExampleLoss = partial(rdro, alpha=ALPHA)


def tree(options: Options) -> StudyReport:
    """T7: sequence sums against length-normalised ratios, RDRO against SFT, as a table and through the decoder."""
    random = np.random.default_rng(12)
    trees = draw_trees(random, TREES_PER_SEED * options.seeds)
    endless = population(trees, ALPHA)
    summed, normalised = (_error(loss, trees, endless) for loss in (SEQUENCE_SUM, per_token))
    sampled = [draw_counts(random, trees, ALPHA, size) for size in SIZES]
    ours = [float(_error(SEQUENCE_SUM, trees, training).mean()) for training in sampled]
    theirs = [float(_error(sft_on_preferred, trees, training).mean()) for training in sampled]
    few = World(*(p[: min(DECODER_TREES, options.seeds)] for p in trees))
    errors = align_decoders(few, COMPLETIONS, random, () if options.fast else SIZES, options)
    return StudyReport(
        name="tree",
        claim="Through the real decoder, packing and step, sequence sums find p+ and need fewer samples than SFT",
        setting=f"completions of 3 symbols and an end, at most {MAX_TOKENS} tokens ({len(COMPLETIONS)} of them), alpha "
        f"= {ALPHA}; tables: {len(summed)} trees; decoder: {errors.setting}",
        checks=(
            Check("table, sequence sums, endless data: largest total variation to p+", summed.max(), below=1e-3),
            Check("table, length-normalised, endless data: mean total variation", normalised.mean(), above=0.05),
            *_comparisons("table", ours, theirs),
            *_decoder_checks(errors),
        ),
        panels=(
            _panel("Tables", ours, theirs),
            *([] if options.fast else [_panel("Decoder", errors.rdro, errors.sft)]),
        ),
    )


def _error(loss: ExampleLoss, trees: World, shares: Shares) -> Float64[np.ndarray, "worlds"]:
    return total_variation(fit_tree(loss, trees.mixture(ALPHA), shares), trees.preferred)


def _decoder_checks(errors: DecoderErrors) -> tuple[Check, ...]:
    return (
        Check("decoder, SFT on all, endless data: total variation of the reference to the mixture", errors.reference),
        Check("decoder, sequence sums, endless data: total variation to p+", errors.summed, below=0.01),
        Check("decoder, length-normalised, endless data: total variation to p+", errors.normalised, above=0.05),
        *_comparisons("decoder", errors.rdro, errors.sft),
    )


def _comparisons(what: str, ours: list[float], theirs: list[float]) -> tuple[Check, ...]:
    """RDRO's error over SFT's, by size of the training set; none where there are no errors."""
    return tuple(
        Check(f"{what}, {size:,} completions: RDRO {left:.4f} over SFT {right:.4f}", left / right, below=1.0)
        for size, left, right in zip(SIZES, ours, theirs, strict=False)
    )


def _panel(title, ours, theirs) -> Panel:
    curves = Curve("RDRO", SIZES, ours), Curve("SFT on preferred", SIZES, theirs)
    return Panel(title, "training completions", "mean total variation to p+", curves, "log", "log")
