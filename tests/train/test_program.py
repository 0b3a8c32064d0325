"""Runs that differ in numbers only share one program, to the letter of what is compiled; and get their own numbers."""

from typing import get_args

import jax
import pytest

from rdro_jax.config import load_config
from rdro_jax.losses import CPO, RDRO, Loss
from rdro_jax.optim import make_optimizer
from rdro_jax.train.policy import make_policy
from rdro_jax.train.program import abstract_batch, abstract_state, lower_step, program_key, step_scalars

KINDS = [kind for kind in get_args(Loss) if kind.traced]


@pytest.fixture
def program(config_file):
    """Text of the lowered step, and its scalars, for overrides of the run's config."""

    def lower(*overrides):
        config = load_config(config_file, ["global_batch_size=8", "num_microbatches=1", *overrides])
        from rdro_jax.parallel import make_mesh

        policy = make_policy(config.model.path, make_mesh(config.mesh), config.model)
        loss = config.loss.resolve(0.5)
        state = abstract_state(config, policy, loss, make_optimizer(config.optimizer, 30))
        lowered = lower_step(config, policy, loss, 30, state, abstract_batch(config, policy))
        return lowered.as_text(), {name: float(x) for name, x in step_scalars(config, policy, loss).items()}

    return lower


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_numbers_of_a_loss_and_the_learning_rate_are_arguments(program, kind):
    fields = [name for name in kind.traced if name != "sampling_alpha"]
    assert "sft_weight" in fields
    texts, told = [], []
    for seed, number in ((1, 0.3), (2, 0.4)):
        values = [f"loss.{name}={number}" for name in fields]
        text, scalars = program(
            f"loss.name={kind.name}", *values, f"seed={seed}", f"optimizer.learning_rate={number}e-3"
        )
        texts.append(text)
        told.append(scalars)
    assert texts[0] == texts[1]
    for name in (*fields, "learning_rate"):
        assert told[1][name] / told[0][name] == pytest.approx(4 / 3)


def test_what_is_no_number_gives_another_program(program):
    assert program("loss.alpha=0.3")[0] != program("loss.alpha=0.3", "loss.generator=kl")[0]


@pytest.mark.parametrize("kind", [RDRO, CPO], ids=lambda kind: kind.name)
def test_without_the_sft_term_it_is_another_program(program, kind):
    """Of an unpaired loss and of a paired one: a run without the term does not pay for it."""
    without, told = program(f"loss.name={kind.name}", "loss.sft_weight=0")
    assert "sft_weight" not in told
    assert without != program(f"loss.name={kind.name}", "loss.sft_weight=0.3")[0]


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("seed=7", True),
        ("output_dir=elsewhere", True),
        ("optimizer.learning_rate=0.5", True),
        ("loss.alpha=0.3", True),
        ("loss.sft_weight=0.2", True),
        ("loss.sft_weight=0", False),
        ("loss.alpha=prompt", False),
        ("loss.generator=kl", False),
        ("optimizer.weight_decay=0.5", False),
        ("max_steps=5", False),
    ],
)
def test_configs_with_one_program_have_one_key(config_file, override, same):
    key = program_key(load_config(config_file, ["loss.sft_weight=0.1"]))
    assert (program_key(load_config(config_file, ["loss.sft_weight=0.1", override])) == key) is same


def test_traced_numbers_are_those_of_the_config():
    """Every loss gives for arrays what it gives for the numbers: no branch looks at them."""
    import jax.numpy as jnp
    import numpy as np

    from rdro_jax.losses import LossInputs

    x = LossInputs(
        policy_logps=jnp.array([-3.0, -5.5, -4.1, -7.0]),
        reference_logps=jnp.array([-3.4, -5.0, -4.3, -6.1]),
        lengths=jnp.array([3, 4, 3, 5]),
        desirable=jnp.array([True, False, True, False]),
        weight=jnp.ones(4),
    )
    losses = [kind(**more).resolve(0.4) for kind in KINDS for more in ({}, {"sft_weight": 0.3})]
    for loss in losses:
        x = x._replace(statistics={"kl": jnp.float32(0.1), "delta": jnp.float32(0.2)})
        traced = jax.jit(lambda x, numbers, loss=loss: loss.with_scalars(numbers)(x))(x, loss.scalars())
        for got, wanted in zip(traced, loss(x), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=3e-7, err_msg=str(loss))
