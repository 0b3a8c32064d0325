"""Packed batches in an order that is a pure function of (seed, epoch): seekable, and the same for every host."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from rdro_jax.batch import Batch
from rdro_jax.data.examples import Examples
from rdro_jax.data.mismatched import Mismatched, plan_mismatched
from rdro_jax.data.pack import EMPTY, pack_batch, plan_pair_rows, plan_rows
from rdro_jax.errors import ConfigError, RecordError

Batching = Literal["stratified", "natural", "balanced", "sequential"]

PREFETCH_THREADS = 2
"""Threads, never processes: worker processes change the order of batches and the state's shape."""
PREFETCH_BATCHES = 4

Step = tuple[Batch, Int32[np.ndarray, "rows slots"]]
"""A batch of numpy arrays and the example index in each slot, -1 where the slot is empty."""


def epoch_order(
    desirable: Bool[np.ndarray, "examples"], *, seed: int, epoch: int, batching: Batching = "stratified"
) -> Int64[np.ndarray, "examples"]:
    """Every example index once, in the order of one epoch: a pure function of its arguments.

    `stratified`: both classes shuffled and dealt out evenly, so that any k neighbours hold k times the rate of
    desirable ones, give or take less than one. `natural`: shuffled. `sequential`: as in the file. `balanced`: the
    classes take turns, and the rarer one starts over until the other is through.
    """
    rows = len(desirable)
    if batching == "sequential":
        return np.arange(rows)
    random = np.random.default_rng([seed, epoch])
    shuffled = random.permutation(rows)
    if batching == "natural":
        return shuffled
    if batching == "balanced":
        classes = [shuffled[desirable[shuffled]], shuffled[~desirable[shuffled]]]
        most = max(map(len, classes))
        if not all(map(len, classes)):  # one class alone has no other to take turns with
            return shuffled
        return np.stack([np.resize(members, most) for members in classes], axis=1).ravel()
    shuffled_labels = desirable[shuffled]
    positives = int(desirable.sum())
    # Bresenham's line from a random start, in integers: floor((i p + phase) / n) desirable ones come before place i.
    counts = (np.arange(rows + 1) * positives + random.integers(max(1, rows))) // max(1, rows)
    takes_positive = np.diff(counts).astype(bool)
    order = np.empty(rows, np.int64)
    order[takes_positive] = shuffled[shuffled_labels]
    order[~takes_positive] = shuffled[~shuffled_labels]
    return order


def balancing_weights(examples: Examples) -> Float32[np.ndarray, "examples"]:
    """Weights under which batches of half desirable examples weigh the classes as the data do.

    Examples of a class drawn at rate 1/2 instead of `a` count `a / (1/2)` times.
    """
    rate = examples.desirable.mean()
    if rate in (0, 1):
        return examples.weight
    return (examples.weight * np.where(examples.desirable, rate, 1 - rate) * 2).astype(np.float32)


def split_pair_order(
    pairs: int, *, seed: int, epoch: int, batching: Batching = "stratified"
) -> Int64[np.ndarray, "examples"]:
    """Every half of every pair once, the two halves of a pair about half an epoch apart; else as `epoch_order`.

    Pair i is the examples 2i (desirable) and 2i + 1. A half beside its other half would turn an unpaired loss into a
    comparison of the two. Of pairs, `stratified` is `balanced`.
    """
    if batching == "sequential":
        return np.arange(2 * pairs)
    random = np.random.default_rng([seed, epoch])
    chosen = 2 * random.permutation(pairs)
    if batching == "natural":
        first = chosen + random.integers(0, 2, pairs)
        return np.concatenate([first, first ^ 1])
    return np.stack([chosen, np.roll(chosen, pairs // 2) + 1], axis=1).ravel()


def plan_epoch(
    examples: Examples,
    *,
    epoch: int,
    global_batch_size: int,
    max_length: int,
    slots: int,
    seed: int,
    batching: Batching = "stratified",
) -> Int32[np.ndarray, "batches rows slots"]:
    """Example index in each slot of each row of each global batch of one epoch; -1 = empty.

    The last batch is filled up with empty rows. The rows open while packing span about two batches, which fills
    rows to about 97 % and keeps the classes of a batch near their rate. Pairs are ordered and packed as one thing each.
    """
    seeds: dict[str, Any] = {"seed": seed, "epoch": epoch, "batching": batching}
    room: dict[str, Any] = {"max_length": max_length, "slots": slots, "window": max(16, 2 * global_batch_size)}
    if examples.paired:
        rows = plan_pair_rows(epoch_order(examples.desirable[::2], **seeds), examples.lengths, **room)
    elif examples.split_pairs:
        order = split_pair_order(len(examples.desirable) // 2, **seeds)
        rows = plan_rows(order, examples.lengths, apart=True, **room)
    else:
        rows = plan_rows(epoch_order(examples.desirable, **seeds), examples.lengths, **room)
    batches = -(-len(rows) // global_batch_size)
    plan = np.full((batches * global_batch_size, slots), EMPTY, np.int32)
    for number, row in enumerate(rows):
        plan[number, : len(row)] = row
    return plan.reshape(batches, global_batch_size, slots)


@dataclass(frozen=True, eq=False)
class Loader:
    """Batches of one host from `start_step` on. Iterating starts over each time; nothing but the step is state."""

    examples: Examples
    plans: tuple[Int32[np.ndarray, "batches rows slots"], ...]
    """Of each epoch: the example index in each slot of the rows of all hosts."""
    mine: slice
    """This host's rows of a global batch."""
    max_length: int
    """Tokens in a row."""
    reference_logps: Float32[np.ndarray, "examples"] | None = None
    """Nats; None = not yet known."""
    start_step: int = 0
    """Batches to pass over, over all epochs."""
    prompt_alpha: Float32[np.ndarray, "examples"] | None = None
    """Share of desirable completions of each example's prompt; None = not asked for."""
    mismatched: Mismatched | None = None
    """Mismatched examples, and the rows of them of all hosts; None = not asked for."""
    mismatched_logps: Float32[np.ndarray, "mismatched"] | None = None
    """Reference log-probabilities of the mismatched examples, in nats; None = not yet known."""
    ends: tuple[int, ...] = field(init=False)
    """First step after each epoch."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", tuple(accumulate(map(len, self.plans))))

    @property
    def num_batches(self) -> int:
        """Batches over all epochs, counted from step 0."""
        return self.ends[-1]

    def epoch(self, step: int) -> float:
        """Epochs done after `step` batches: 1.5 is halfway through the second."""
        number = int(np.searchsorted(self.ends, step, side="right"))
        if number == len(self.ends):
            return float(number)
        begin = self.ends[number] - len(self.plans[number])
        return number + (step - begin) / len(self.plans[number])

    def members(self, step: int) -> Int32[np.ndarray, "rows slots"]:
        """Examples of the global batch of a step; -1 = empty."""
        return self._of_step(self.plans, step)

    def _of_step(self, plans: tuple[Int32[np.ndarray, "batches rows slots"], ...], step: int) -> np.ndarray:
        number = int(np.searchsorted(self.ends, step, side="right"))
        return plans[number][step - self.ends[number]]

    def __getitem__(self, step: int) -> Step:
        """The batch of one step: a pure function of it."""
        plan = self.members(step)[self.mine]
        batch = pack_batch(
            self.examples,
            plan,
            max_length=self.max_length,
            reference_logps=self.reference_logps,
            prompt_alpha=self.prompt_alpha,
        )
        if self.mismatched is None:
            return batch, plan
        rows = self._of_step(self.mismatched.plans, step)[self.mine]
        others = pack_batch(
            self.mismatched.examples, rows, max_length=self.max_length, reference_logps=self.mismatched_logps
        )
        return batch._replace(mismatched=others), plan

    def mismatched_examples(self) -> Examples:
        """The mismatched examples of all epochs, the same on every host, for the reference to score."""
        assert self.mismatched is not None, "make the loader with mismatched=True"
        return self.mismatched.examples

    def with_mismatched_logps(self, logps: Float32[np.ndarray, "mismatched"]) -> "Loader":
        """This loader, with what the reference gave for `mismatched_examples()`, in nats."""
        return replace(self, mismatched_logps=logps)

    def __iter__(self) -> Iterator[Step]:
        """Batches of `start_step`, `start_step + 1`, ... packed ahead of time on threads."""
        import grain  # here, because it takes a second to import

        steps = grain.MapDataset.range(self.start_step, self.num_batches).map(self.__getitem__)
        options = grain.ReadOptions(num_threads=PREFETCH_THREADS, prefetch_buffer_size=PREFETCH_BATCHES)
        return iter(steps.to_iter_dataset(options))


def make_loader(
    examples: Examples,
    *,
    global_batch_size: int,
    max_length: int,
    slots: int,
    seed: int = 0,
    num_epochs: int = 1,
    batching: Batching = "stratified",
    reference_logps: Float32[np.ndarray, "examples"] | None = None,
    host_index: int = 0,
    host_count: int = 1,
    start_step: int = 0,
    prompt_alpha: Float32[np.ndarray, "examples"] | None = None,
    mismatched: bool = False,
) -> Loader:
    """The loader of one host. Global batch `step` is the same for every number of hosts; host i has its i-th part.

    `global_batch_size` counts packed rows over all hosts. All epochs are planned here, so that the number of steps
    is known before the first; planning takes about ten seconds a million examples.

    `prompt_alpha` (see `prompt_rates`) gives the batches that field. `mismatched` gives them rows of mismatched
    examples, whose reference log-probs are NaN until `with_mismatched_logps`.

    Raises: ConfigError where the rows do not divide among the hosts or pairs have no two slots, RecordError where an
    example or a pair exceeds the row.
    """
    if global_batch_size % host_count:
        raise ConfigError(f"global_batch_size: got {global_batch_size}; wanted a multiple of the {host_count} hosts")
    if examples.paired and slots < 2:
        raise ConfigError(f"data.slots: got {slots}; wanted at least 2, because a pair takes two slots of a row")
    _check_room(examples, max_length)
    if batching == "balanced":
        examples = examples._replace(weight=balancing_weights(examples))
    share = global_batch_size // host_count
    plans = [
        plan_epoch(
            examples,
            epoch=epoch,
            global_batch_size=global_batch_size,
            max_length=max_length,
            slots=slots,
            seed=seed,
            batching=batching,
        )
        for epoch in range(num_epochs)
    ]
    others = plan_mismatched(examples, plans, max_length=max_length, seed=seed) if mismatched else None
    return Loader(
        examples,
        tuple(plans),
        slice(host_index * share, (host_index + 1) * share),
        max_length,
        reference_logps,
        start_step,
        prompt_alpha,
        others,
    )


def _check_room(examples: Examples, max_length: int) -> None:
    """Raises RecordError for an example, or a pair, that no row can hold."""
    lengths = examples.lengths.reshape(-1, 2).sum(axis=1) if examples.paired else examples.lengths
    longest, what = int(lengths.max(initial=0)), "a pair" if examples.paired else "an example"
    if longest > max_length:
        raise RecordError(f"{what} has {longest} tokens, the packed row {max_length}; load with this max_length")
