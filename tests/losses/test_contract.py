"""What every member of the union `Loss` promises, whichever it is: a new member is tested by being named there."""

import dataclasses
from typing import Annotated, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads
from pydantic import Field, TypeAdapter

from rdro_jax.errors import ConfigError
from rdro_jax.losses import (
    BCO,
    DDRO,
    DPO,
    KTO,
    ORPO,
    RDRO,
    SFT,
    APOZeroUnpaired,
    Loss,
    LossBase,
    LossInputs,
    SimPO,
)

MEMBERS = get_args(Loss)
DEFAULTS = [member().resolve(0.39) for member in MEMBERS]
OTHERS = [
    RDRO(alpha=0.3, sampling_alpha=0.39, sft_weight=0.2),
    RDRO(alpha=0.3, generator="kl"),
    RDRO(alpha=0.3, generator="least_squares"),
    RDRO(alpha=0.3, generator="power", exponent=0.5),
    RDRO(alpha=0.3, estimator="class_mean"),
    RDRO(alpha=0.3, estimator="batch_mean"),
    RDRO(alpha=0.3, prompt_alpha="offset"),
    RDRO(alpha=0.3, prompt_alpha="weight", generator="least_squares"),
    RDRO(alpha=0.3, label_noise=0.1),
    DDRO(alpha=0.3, sampling_alpha=0.39),
    KTO(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5, sft_weight=0.1),
    DPO(label_smoothing=0.1, sft_weight=1.0),
    DPO(kind="robust", label_smoothing=0.1),
    *(DPO(kind=kind) for kind in ("ipo", "hinge", "nca_pair", "sppo_hard")),
    SFT(on="desirable"),
]
LOSSES = DEFAULTS + OTHERS


def label(loss):
    """The name and what differs from the defaults."""
    changed = [f"{key}={value}" for key, value in vars(loss).items() if value != getattr(type(loss)(), key)]
    return ",".join([loss.name, *changed])


every_loss = pytest.mark.parametrize("loss", LOSSES, ids=label)


def examples(count=24, seed=0):
    """Pairs of ordinary size; an empty pair and, for the unpaired, a whole class in the second half."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 30, count)
    policy = -1.3 * lengths + rng.normal(size=count)
    weight = rng.choice([1.0, 1.0, 2.0], count)
    weight[4:6] = 0
    return LossInputs(
        policy_logps=jnp.asarray(policy),
        reference_logps=jnp.asarray(policy - rng.normal(size=count)),
        lengths=jnp.asarray(lengths),
        desirable=jnp.asarray(np.arange(count) % 2 == 0),
        weight=jnp.asarray(weight),
        prompt_alpha=jnp.asarray(rng.uniform(0.1, 0.9, count)),
    )


def unpaired(x):
    """Class by class, so that parts of the batch lack one."""
    order = jnp.argsort(~x.desirable, stable=True)
    return take(x, order)


def take(x, index):
    return x._replace(prompt_alpha=x.prompt_alpha[index], **{name: getattr(x, name)[index] for name in x._fields[:5]})


def with_statistics(loss, x, scale=1.0):
    mismatched = examples(len(x.weight), seed=7) if loss.needs_mismatched else None
    if mismatched is not None:
        mismatched = mismatched._replace(policy_logps=mismatched.reference_logps + 0.3 * scale)
    statistics, _ = loss.statistics(x, mismatched, loss.init_running())
    return x._replace(statistics=statistics)


def batch_for(loss):
    return with_statistics(loss, examples() if loss.paired else unpaired(examples()))


def total(loss, x, policy_logps=None):
    values, weights = loss(x if policy_logps is None else x._replace(policy_logps=policy_logps))
    return jnp.sum(values * weights), jnp.sum(weights)


def total_and_grad(loss, x):
    (value, weight), grad = jax.value_and_grad(lambda p: total(loss, x, p), has_aux=True)(x.policy_logps)
    return value, weight, grad


def test_every_member_is_a_loss_with_a_name_of_its_own():
    assert all(issubclass(member, LossBase) for member in MEMBERS)
    names = [member().name for member in MEMBERS]
    assert len(set(names)) == len(MEMBERS) == len({hash(member()) for member in MEMBERS})
    adapter = TypeAdapter(Annotated[Loss, Field(discriminator="name")])
    for member in MEMBERS:
        assert adapter.validate_python({"name": member().name}) == member()
        assert not any(dataclasses.fields(member)[0].name == field for field in vars(LossBase) if field != "name")


@every_loss
def test_jit_equals_eager_one_value_per_example(loss):
    x = batch_for(loss)
    eager = loss(x)
    jitted = jax.jit(loss)(x)
    for got, wanted in zip(jitted, eager, strict=True):
        assert wanted.shape == x.weight.shape
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-6)
    assert float(jnp.sum(eager.weights)) > 0


@every_loss
def test_extreme_log_ratios_stay_finite(loss):
    """Every pair of log-ratios up to 1e4 nats, both labels, short completions and empty ones, in float32."""
    s = np.array([0, 20, 89, 300, 800, 1e4], np.float32)
    s = np.concatenate([s, -s[1:]])
    policy = jnp.asarray(np.stack(np.meshgrid(s, s), axis=-1).reshape(-1))
    for desirable_first, length in ((True, 3), (False, 1), (True, 0)):
        x = LossInputs(
            policy_logps=policy,
            reference_logps=jnp.zeros_like(policy),
            lengths=jnp.full(policy.size, length),
            desirable=(jnp.arange(policy.size) % 2 == 0) == desirable_first,
            weight=jnp.ones_like(policy),
            prompt_alpha=jnp.full(policy.size, 0.05),
        )
        value, _, grad = total_and_grad(loss, with_statistics(loss, x, scale=1e4))
        assert np.isfinite(loss(with_statistics(loss, x)).values).all()
        assert np.isfinite(value)
        assert np.isfinite(grad).all()


@every_loss
def test_gradients_equal_finite_differences_in_float64(loss):
    with jax.enable_x64(True):
        x = batch_for(loss)
        assert x.policy_logps.dtype == jnp.float64
        check_grads(
            lambda p: total(loss, x, jnp.asarray(p))[0], (x.policy_logps,), order=1, modes=["rev"], rtol=1e-6, eps=1e-5
        )


@every_loss
def test_filler_changes_nothing(loss):
    """Empty slots hold 0 by contract; whatever they hold, weight 0 keeps it out of sums and statistics alike."""
    x = batch_for(loss)
    for logp, length in ((0.0, 0), (-50.0, 3), (40.0, 1)):
        filler = LossInputs(
            policy_logps=jnp.full(6, logp),
            reference_logps=jnp.zeros(6),
            lengths=jnp.full(6, length),
            desirable=jnp.array([True, False, True, True, False, False]),
            weight=jnp.zeros(6),
            prompt_alpha=jnp.zeros(6),
        )
        padded = LossInputs(*(jnp.concatenate(both) for both in zip(x[:5], filler[:5], strict=True)))
        padded = padded._replace(prompt_alpha=jnp.concatenate([x.prompt_alpha, filler.prompt_alpha]))
        padded = with_statistics(loss, padded)
        for got, wanted in zip(total_and_grad(loss, padded), total_and_grad(loss, x), strict=True):
            np.testing.assert_allclose(got[: len(x.weight)] if jnp.ndim(got) else got, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(total_and_grad(loss, padded)[2][len(x.weight) :], 0.0)


@every_loss
def test_order_changes_nothing(loss):
    x = batch_for(loss)
    rng = np.random.default_rng(3)
    order = rng.permutation(len(x.weight) // 2)
    order = np.stack([2 * order, 2 * order + 1], axis=1).reshape(-1) if loss.paired else rng.permutation(len(x.weight))
    values, weights = loss(x)
    moved = loss(with_statistics(loss, take(x, order)))
    np.testing.assert_allclose(moved.values, values[order], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(moved.weights, weights[order])


@every_loss
def test_microbatches_add_up_to_the_batch(loss):
    """Parts of one class, and an empty pair among them; the statistics are the whole batch's."""
    x = batch_for(loss)
    whole = total_and_grad(loss, x)
    for parts in (2, 6):
        pieces = [total_and_grad(loss, take(x, index)) for index in np.split(np.arange(len(x.weight)), parts)]
        np.testing.assert_allclose(sum(piece[0] for piece in pieces), whole[0], rtol=1e-6)
        np.testing.assert_allclose(sum(piece[1] for piece in pieces), whole[1], rtol=1e-6)
        np.testing.assert_allclose(np.concatenate([piece[2] for piece in pieces]), whole[2], rtol=1e-6, atol=1e-6)


@every_loss
def test_statistics_carry_no_gradient(loss):
    x, mismatched = examples(), examples(seed=7)

    def statistics(policy_logps):
        parts = (part._replace(policy_logps=policy_logps) for part in (x, mismatched))
        return sum(jax.tree.leaves(loss.statistics(*parts, loss.init_running())), jnp.zeros(()))

    np.testing.assert_array_equal(jax.grad(statistics)(x.policy_logps), 0.0)


@pytest.mark.parametrize("loss", DEFAULTS, ids=label)
def test_eight_devices_equal_one(loss):
    x = batch_for(loss)._replace(statistics=())
    compute = jax.jit(lambda x: total_and_grad(loss, with_statistics(loss, x)))
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    many = compute(jax.tree.map(lambda leaf: jax.device_put(jnp.tile(leaf, 2), spread), x))
    one = compute(jax.tree.map(lambda leaf: jnp.tile(leaf, 2), x))
    for got, wanted in zip(many, one, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if not loss.needs_reference], ids=label)
def test_a_reference_that_is_not_needed_is_not_read(loss):
    x = batch_for(loss)
    value, _, grad = total_and_grad(loss, x._replace(reference_logps=jnp.full(len(x.weight), jnp.nan)))
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize(
    ("make", "key"),
    [
        *[(lambda a=a, member=member: member(alpha=a), "alpha") for a in (0.0, 1.0, -0.3) for member in (RDRO, DDRO)],
        (lambda: RDRO(alpha=float("nan")), "alpha"),
        (lambda: RDRO(sampling_alpha=1.0), "sampling_alpha"),
        (lambda: RDRO(generator="power"), "exponent"),
        (lambda: RDRO(generator="power", exponent=0.0), "exponent"),
        (lambda: RDRO(exponent=0.5), "exponent"),
        (lambda: RDRO(label_noise=0.5), "label_noise"),
        (lambda: RDRO(label_noise=-0.1), "label_noise"),
        (lambda: RDRO(label_noise=0.3).resolve(0.25), "label_noise"),
        (lambda: RDRO(alpha=0.3, label_noise=0.1).resolve(0.39), "label_noise"),
        (lambda: RDRO(label_noise=0.1, estimator="class_mean"), "estimator"),
        (lambda: RDRO(label_noise=0.1, prompt_alpha="offset"), "prompt_alpha"),
        (lambda: RDRO(alpha=0.3, prompt_alpha="offset").resolve(0.39), "prompt_alpha"),
        (lambda: RDRO(alpha="estimate", prompt_alpha="offset"), "prompt_alpha"),
        (lambda: RDRO(alpha="estimate", label_noise=0.1), "label_noise"),
        (lambda: DDRO(epsilon=1.0), "epsilon"),
        (lambda: DDRO(epsilon=-0.1), "epsilon"),
        *[
            (lambda b=b, member=member: member(beta=b), "beta")
            for b in (0.0, -1.0, float("inf"))
            for member in (KTO, APOZeroUnpaired, BCO, DPO, SimPO, ORPO)
        ],
        (lambda: KTO(desirable_weight=-1.0), "desirable_weight"),
        (lambda: KTO(undesirable_weight=float("nan")), "undesirable_weight"),
        (lambda: DPO(label_smoothing=0.5), "label_smoothing"),
        (lambda: DPO(kind="ipo", label_smoothing=0.1), "label_smoothing"),
        (lambda: SimPO(gamma=-0.1), "gamma"),
        (lambda: DPO(sft_weight=-1.0), "sft_weight"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(make, key):
    with pytest.raises(ConfigError, match=rf"^loss\.{key}: got .*; wanted [^\n]*$"):
        make()
