"""Every public name has an example in its docstring; `--doctest-modules` runs them."""

import inspect

import pytest

import rdro_jax
from rdro_jax import losses

PUBLIC = {f"rdro_jax.{name}": getattr(rdro_jax, name) for name in rdro_jax.__all__}
LOSSES = {f"rdro_jax.losses.{name}": getattr(losses, name) for name in losses.__all__}
LOSSES = {name: value for name, value in LOSSES.items() if inspect.isfunction(value)}
CALLED = {
    name: value for name, value in (PUBLIC | LOSSES).items() if inspect.isroutine(value) or inspect.isclass(value)
}


def test_the_names_are_found():
    assert {"rdro_jax.train", "rdro_jax.Batch", "rdro_jax.losses.rdro"} <= CALLED.keys()


@pytest.mark.parametrize("name", CALLED)
def test_public_name_has_an_example(name):
    # Its own docstring: a class without one would show that of its base.
    assert ">>> " in (CALLED[name].__doc__ or "")
