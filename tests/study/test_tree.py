"""The prefix tree by brute force, and the decoder's part against the same arithmetic by hand."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdro_jax.losses import RDRO, LossInputs
from rdro_jax.models import forward, init_params, logits
from rdro_jax.study import decoder, tree
from rdro_jax.study.worlds import Shares, draw_distributions

TREES = tree.draw_trees(np.random.default_rng(0), 2)


def test_every_completion_is_there_once():
    """All strings of at most 3 symbols, each closed: 1 + 3 + 9 + 27."""
    expected = {(*word, 3) for length in range(4) for word in product((0, 1, 2), repeat=length)}
    assert set(tree.COMPLETIONS) == expected
    assert len(tree.COMPLETIONS) == 40


def test_probability_is_the_product_along_the_path():
    next_token = draw_distributions(np.random.default_rng(0), (2, 2, len(tree.PREFIXES)), 4)
    for world in (0, 1):
        for number, completion in enumerate(tree.COMPLETIONS):
            steps = [
                next_token[0, world, tree.PREFIXES.index(completion[:t]), completion[t]]
                for t in range(len(completion[:3]))
            ]
            assert TREES.preferred[world, number] == pytest.approx(np.prod(steps))
    np.testing.assert_allclose([p.sum(-1) for p in TREES], 1)


def test_decoder_distribution_is_that_of_its_logits():
    """Every completion alone, unpacked, by the dense softmax."""
    task = decoder.pack_task(tree.COMPLETIONS)
    params = init_params(decoder.MODEL, jax.random.key(0))
    expected = []
    for completion in tree.COMPLETIONS:
        tokens = jnp.array([[decoder.PROMPT, *completion]])
        logps = jax.nn.log_softmax(logits(params, decoder.MODEL, forward(params, decoder.MODEL, tokens)))
        expected.append(float(jnp.exp(sum(logps[0, place, token] for place, token in enumerate(completion)))))
    found = decoder.probabilities(task, jax.tree.map(lambda leaf: leaf[None], params))
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)
    assert found.sum() < 1


def test_what_a_decoder_spends_on_no_completion_counts():
    """(.4, .4, and .2 elsewhere) against (.5, .5, 0): half of .1 + .1 + .2."""
    assert decoder.distance(np.array([[0.4, 0.4]]), np.array([[0.5, 0.5]])) == pytest.approx([0.2])


def test_weights_reach_the_slot_of_their_completion():
    task = decoder.pack_task(tree.COMPLETIONS)
    shares = Shares(np.arange(40)[None] / 1000, np.arange(100, 140)[None] / 1000)
    weights = decoder.weights_of(task, shares)[0]
    seen = {}
    for row, slot in np.argwhere(task.members >= 0):
        inside = np.asarray(task.batch.segment_ids[row] == slot + 1)
        tokens = tuple(np.asarray(task.batch.tokens[row])[inside].tolist())
        seen[tokens, bool(task.batch.desirable[row, slot])] = weights[row, slot]
    assert len(seen) == 80
    for number, completion in enumerate(tree.COMPLETIONS):
        assert seen[(decoder.PROMPT, *completion), True] == pytest.approx(number / 1000)
        assert seen[(decoder.PROMPT, *completion), False] == pytest.approx((100 + number) / 1000)
    assert (weights[task.members < 0] == 0).all()


def test_length_normalised_loss_is_rdro_of_means():
    policy, lengths = jnp.array([-2.0, -9.0, -4.0]), jnp.array([1, 3, 4])
    x = LossInputs(policy, jnp.full(3, -3.0), lengths, jnp.array([True, False, True]), jnp.ones(3))
    s = np.array([1.0, -2.0, -0.25])
    expected = np.logaddexp(0, s) + np.array([1, 0, 1]) * np.logaddexp(0, -s) / 0.4
    np.testing.assert_allclose(decoder.PerToken(alpha=0.4)(x).values, expected, rtol=1e-6)
    assert not np.allclose(RDRO(alpha=0.4)(x).values, expected)
